// The page's tables, filters and samples. Everything from the data goes in as text, never as HTML.
"use strict";
(() => {
  const data = {};
  const byId = (id) => document.getElementById(id);

  // Sorting: a button in each head, so that keys work as clicks do. Rows without a value stay last.
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = "descending" in head.dataset ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? second : first;
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", order);
        sort(table, column, order === "ascending" ? 1 : -1);
      });
    });
  }

  function sort(table, column, sign) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[column];
      const text = cell.dataset.sort ?? cell.textContent.trim();
      return { row, text, value: text === "" ? NaN : Number(text) };
    });
    rows.sort((a, b) => {
      if ((a.text === "") !== (b.text === "")) return a.text === "" ? 1 : -1;
      const numbers = !Number.isNaN(a.value) && !Number.isNaN(b.value);
      return sign * (numbers ? a.value - b.value : a.text.localeCompare(b.text, "en", { numeric: true }));
    });
    body.append(...rows.map((entry) => entry.row));
  }

  function leaderboards() {
    const scopes = [...document.querySelectorAll(".scope")];
    byId("scope")?.addEventListener("change", (event) => {
      scopes.forEach((scope) => (scope.hidden = scope.dataset.scope !== event.target.value));
    });
  }

  function cells() {
    const rows = [...document.querySelectorAll("table.cells tbody tr")];
    const choices = ["cell-task", "cell-agent", "cell-status"].map(byId);
    const words = rows.map((row) => [...row.cells].slice(0, 4).map((cell) => cell.textContent.trim()));
    function filter() {
      let shown = 0;
      rows.forEach((row, i) => {
        const [task, agent, , status] = words[i];
        row.hidden = [task, agent, status].some((word, k) => choices[k].value && choices[k].value !== word);
        shown += !row.hidden;
      });
      byId("cell-count").textContent = `${shown} of ${rows.length}`;
    }
    choices.forEach((choice) => choice.addEventListener("change", filter));
    filter();
  }

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  const figure = (value) => (value === null ? "–" : value.toFixed(3).replace("-", "−"));

  function answer(title, side) {
    if (side === null) {
      return element("div", "", element("h4", "", title), element("p", "completion soft", "(none)"));
    }
    const terms = element("p", "terms", element("b", "", figure(side.reward)), " reward");
    if (side.gold !== undefined && side.gold !== null) {
      terms.append(" ", element("span", "", element("b", "", figure(side.gold)), " gold"));
    }
    for (const [name, value] of Object.entries(side.terms ?? {})) {
      terms.append(" ", element("span", "", `${name} ${figure(value)}`));
    }
    const text = side.completion === "" ? element("p", "completion soft", "(empty)") : element("p", "completion", side.completion);
    return element("div", "", element("h4", "", title), text, terms);
  }

  function samples() {
    const [problem, agent, list] = [byId("sample-problem"), byId("sample-agent"), byId("sample-list")];
    const options = (select, indices, names) =>
      select.replaceChildren(...indices.map((index) => new Option(names[index], index)));
    const there = [...new Set(data.samples.map((entry) => entry.problem))];
    if (!there.length) {
      byId("samples").hidden = true;
      return;
    }
    function show() {
      const entry = data.samples.find((one) => one.problem === +problem.value && one.agent === +agent.value);
      byId("sample-cell").href = entry.href;
      list.replaceChildren(
        ...entry.samples.map((sample) =>
          element(
            "article",
            "sample",
            element("p", "prompt", sample.prompt),
            element("div", "pair", answer("Before", sample.before), answer(entry.now ? "Now" : "After", sample.after)),
          ),
        ),
      );
    }
    function agents() {
      const kept = agent.value;
      const of = data.samples.filter((entry) => entry.problem === +problem.value).map((entry) => entry.agent);
      options(agent, of, data.agents.map((each) => each.name));
      if (of.includes(+kept) && kept !== "") agent.value = kept;
      show();
    }
    options(problem, there, data.problems.map((each) => each.label));
    const count = (index) => data.samples.filter((entry) => entry.problem === index).length;
    problem.value = there.reduce((best, index) => (count(index) > count(best) ? index : best), there[0]);
    problem.addEventListener("change", agents);
    agent.addEventListener("change", show);
    agents();
  }

  // Once for every state of the page: live.js puts a newer one in its place.
  function start() {
    Object.assign(data, JSON.parse(byId("data").textContent));
    document.querySelectorAll("table[data-sortable]").forEach(sortable);
    leaderboards();
    cells();
    samples();
  }

  start();
  window.textgym = { data, starts: [start] };
})();
