// The panel of one state of one episode: what was written so far, the likeliest tokens side by side, and the numbers.
"use strict";
const panel = (() => {
  const { number, share, make, dot, token } = parts;
  const NAMES = { token: "Token", state: "State", solver: "By the solver", episode: "Episode so far" };

  function row(candidate, taken, exact) {
    const bar = (name, value) => {
      const line = make("i", { class: name });
      line.style.setProperty("--share", value ?? 0);
      return line;
    };
    const bars = [bar("pi", candidate.probability), bar("ref", candidate.reference)];
    if (exact) bars.push(bar("best", candidate.optimal));
    const cells = [share(candidate.probability), share(candidate.reference)];
    if (exact) cells.push(share(candidate.optimal), number(candidate.optimal_action_value));
    return make(
      "tr",
      taken ? { class: "taken", "aria-current": "true" } : {},
      make("th", { scope: "row" }, token(candidate.text)),
      make("td", { class: "bars" }, ...bars),
      ...cells.map((cell) => make("td", { class: "n" }, cell)),
    );
  }

  function candidates(trace, step) {
    const exact = step.candidates.some((candidate) => candidate.optimal !== null);
    const heads = ["pi:π", "ref:ref", ...(exact ? ["best:π*", ":Q*"] : [])].map((head) => {
      const [name, label] = head.split(":");
      return make("th", { scope: "col", class: "n" }, name ? make("i", { class: `key ${name}` }) : null, label);
    });
    const rows = step.candidates.map((candidate) => row(candidate, candidate.token === step.token, exact));
    const others = trace.vocabulary - step.candidates.length;
    if (others > 0 && Math.max(step.rest ?? 0, step.reference_rest) >= 0.0005) {
      const rest = { text: `${others.toLocaleString("en")} others`, probability: step.rest, reference: step.reference_rest, optimal: null, optimal_action_value: null };
      const line = row(rest, false, exact);
      line.classList.add("others");
      rows.push(line);
    }
    return make(
      "table",
      { class: "candidates" },
      make("caption", { class: "visually-hidden" }, "The likeliest next tokens by policy and reference"),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Next token"), make("td"), ...heads)),
      make("tbody", {}, ...rows),
    );
  }

  function group(name, quantities, step) {
    const known = quantities.filter((quantity) => quantity.group === name && step[quantity.name] !== null);
    const lines = known.map((quantity) => {
      const signed = ["signed", "loss"].includes(quantity.kind);
      const value = make("dd", { "data-name": quantity.name }, number(step[quantity.name], signed));
      return [make("dt", { title: quantity.meaning }, quantity.label), value];
    });
    if (name === "token") {
      lines.unshift(
        [make("dt", {}, "id"), make("dd", {}, String(step.token))],
        [make("dt", {}, "log π"), make("dd", { "data-name": "log_prob" }, number(step.log_prob))],
        [make("dt", {}, "log ref"), make("dd", { "data-name": "log_reference" }, number(step.log_reference))],
      );
      if (step.rank !== null) lines.push([make("dt", {}, "Rank under π"), make("dd", { "data-name": "rank" }, String(step.rank))]);
      if (step.potential !== null) lines.push([make("dt", {}, "Potential"), make("dd", {}, number(step.potential))]);
    }
    return lines.length ? make("div", { class: "group" }, make("h4", {}, NAMES[name]), make("dl", {}, ...lines.flat())) : null;
  }

  function state(trace, step) {
    const written = step.written ? step.written : make("span", { class: "soft" }, "the prompt alone");
    return make("p", { class: "state" }, make("span", { class: "label" }, `State ${step.step}`), written, make("span", { class: "next" }, token(step.text)));
  }

  let open = false; // the ids stay open from state to state

  function ids(trace, t) {
    const tokens = trace.steps.slice(0, t).flatMap((step) => [step.token, ...step.reply_ids]);
    const list = make("pre", {}, `${trace.prompt_ids.join(" ")}${tokens.length ? ` | ${tokens.join(" ")}` : ""}`);
    const details = make("details", { class: "ids" }, make("summary", {}, "State as token ids: prompt | completion"), list);
    details.open = open;
    details.addEventListener("toggle", () => (open = details.open));
    return details;
  }

  return (trace, index, t, data) => {
    const step = trace.steps[t];
    const name = data.traces.length > 1 ? make("h3", {}, dot(index), trace.agent) : null;
    const attributes = { class: `panel p${index + 1}`, "aria-label": `State ${t} of ${trace.agent}` };
    if (!step) {
      const end = `This episode ended after ${trace.steps.length} tokens (${trace.finish_reason}).`;
      return make("article", attributes, name, make("p", { class: "soft" }, end));
    }
    const groups = Object.keys(NAMES).map((key) => group(key, data.quantities, step));
    const facts = make("div", { class: "facts" }, ...groups.filter((part) => part !== null));
    return make("article", attributes, name, state(trace, step), make("div", { class: "columns" }, make("div", { class: "scroller" }, candidates(trace, step)), facts), ids(trace, t));
  };
})();
