// Looks every second whether the page has changed where it is served, and puts the newer one in its place: what a reader
// has chosen, opened, sorted or scrolled to stays, and charts are drawn on.
"use strict";
(() => {
  const EVERY = 1000; // milliseconds
  const scripts = (page) => [...page.querySelectorAll("script[src]")].map((each) => each.getAttribute("src")).filter((src) => src !== "plotly.min.js").join();
  const all = (selector) => [...document.querySelectorAll(selector)];
  const ours = scripts(document);
  const status = document.createElement("span");
  status.id = "live";
  status.setAttribute("role", "status");
  document.getElementById("theme").before(status);

  const nameOf = (select) => select.id || select.dataset.for;
  const placeOf = (details) => `${details.closest("figure")?.querySelector("figcaption")?.textContent} ${details.firstElementChild.textContent.replace(/\d+/g, "")}`;
  const boxOf = (part) => part.closest(".scroll").getAttribute("aria-label");

  function remember() {
    return {
      selects: all("main select").map((select) => [nameOf(select), select.value]),
      open: new Set(all("main details[open]").map(placeOf)),
      boxes: new Map(all("main .scroll").map((box) => [boxOf(box), [box.scrollLeft, box.scrollTop]])),
      sorted: all("main th:is([aria-sort=ascending], [aria-sort=descending])").map((head) => [boxOf(head), head.cellIndex, head.getAttribute("aria-sort")]),
      focus: document.activeElement?.id,
      scroll: [scrollX, scrollY],
    };
  }

  function recall(state) {
    for (const [name, value] of state.selects) {
      const select = all("main select").find((each) => nameOf(each) === name);
      if (!select || select.value === value || ![...select.options].some((option) => option.value === value)) continue;
      select.value = value;
      select.dispatchEvent(new Event("change"));
    }
    all("main details").forEach((details) => (details.open = state.open.has(placeOf(details))));
    for (const [box, column, order] of state.sorted) {
      const head = all("main th[aria-sort]").find((each) => each.cellIndex === column && boxOf(each) === box);
      for (let clicks = 0; head && head.getAttribute("aria-sort") !== order && clicks < 2; clicks++) head.querySelector("button").click();
    }
    all("main .scroll").forEach((box) => box.scrollTo(...(state.boxes.get(boxOf(box)) ?? [0, 0])));
    if (state.focus) document.getElementById(state.focus)?.focus({ preventScroll: true });
    scrollTo({ left: state.scroll[0], top: state.scroll[1], behavior: "instant" });
  }

  function replace(page, ...parts) {
    parts.forEach((part) => document.querySelector(part)?.replaceWith(page.querySelector(part)));
  }

  // Where only numbers of the progress are new, the rest is left alone.
  function update(page) {
    if (scripts(page) !== ours) return void location.reload();
    const state = remember();
    const text = (of) => of.querySelector("#data")?.textContent;
    if (text(document) !== undefined && text(document) === text(page)) {
      replace(page, "#now");
    } else {
      const charts = new Map(all(".chart").map((chart) => [chart.getAttribute("aria-label"), chart]));
      page.querySelectorAll(".chart").forEach((fresh) => {
        const chart = charts.get(fresh.getAttribute("aria-label"));
        if (!chart) return;
        Object.assign(chart.dataset, fresh.dataset);
        fresh.replaceWith(chart);
      });
      replace(page, "main", ".bar nav", "#data");
      window.textgym?.starts.forEach((start) => start());
    }
    document.title = page.title;
    recall(state);
  }

  let shown = null;
  async function look() {
    try {
      const answer = await fetch(location.pathname, { cache: "no-cache" });
      if (!answer.ok) throw new Error(answer.statusText);
      const tag = answer.headers.get("ETag");
      if (tag !== shown) update(new DOMParser().parseFromString(await answer.text(), "text/html"));
      shown = tag;
      status.textContent = "Live";
    } catch {
      status.textContent = "Ended: this is the last state";
    }
    setTimeout(look, EVERY);
  }
  setTimeout(look, EVERY);
})();
