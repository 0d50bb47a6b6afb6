// The microscope: a strip of tokens, curves over the episode, and the panel of the selected state.
"use strict";
(() => {
  const { real, number, make, dot, token } = parts;
  const data = JSON.parse(document.getElementById("data").textContent);
  const { traces, quantities, parting } = data;
  const byName = Object.fromEntries(quantities.map((quantity) => [quantity.name, quantity]));
  const length = Math.max(...traces.map((trace) => trace.steps.length));
  const find = (id) => document.getElementById(id);
  const view = { t: 0, by: "kl" };

  const isSigned = (quantity) => ["signed", "loss"].includes(quantity.kind);
  const shown = (quantity, step) => number(step[quantity.name], isSigned(quantity));
  const values = (trace, name) => trace.steps.map((step) => (step[name] === null ? null : real(step[name])));
  const isKnown = (name) => traces.some((trace) => trace.steps.some((step) => step[name] !== null));

  // Colours

  function range(quantity) {
    const all = traces.flatMap((trace) => values(trace, quantity.name)).filter(Number.isFinite);
    const most = Math.max(0, ...all.map(Math.abs));
    if (isSigned(quantity)) return [-most, most];
    if (quantity.kind === "level") return [Math.min(...all), Math.max(...all)];
    return [0, most];
  }

  // Which hue, and how much of it in 0..1.
  function tint(quantity, value, [low, high]) {
    if (value === null || Number.isNaN(value)) return ["none", 0];
    const bad = ["cost", "loss"].includes(quantity.kind);
    if (isSigned(quantity)) {
      const strength = value === 0 ? 0 : Math.min(1, Math.abs(value) / high);
      return [value > 0 !== bad ? "cool" : "warm", strength];
    }
    return [bad ? "warm" : "cool", high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0];
  }

  function drawLegend(quantity, [low, high]) {
    const scale = make("span", { class: `scale ${quantity.kind}` });
    const ends = low === high ? [make("span", {}, `${number(low)} throughout`)] : [number(low, isSigned(quantity)), scale, number(high, isSigned(quantity))];
    find("legend").replaceChildren(...ends);
    find("meaning").textContent = quantity.meaning;
  }

  // The strips

  function buildStrips() {
    const strips = traces.map((trace, index) => {
      const buttons = trace.steps.flatMap((step, t) => {
        const button = make("button", { type: "button", role: "option", class: "token", tabindex: "-1" }, token(step.text), make("span", { class: "figure" }));
        if (t === parting) button.classList.add("parts");
        button.addEventListener("click", () => select(t, index));
        const reply = step.reply.map((text) => token(text));
        return reply.length ? [button, make("span", { class: "reply", title: "written by the environment", role: "presentation" }, ...reply)] : [button];
      });
      const name = traces.length > 1 ? make("div", { class: "strip-name" }, dot(index), trace.agent) : null;
      const list = make("div", { role: "listbox", "aria-label": `Tokens of ${trace.agent}`, "aria-orientation": "horizontal", class: "strip" }, ...buttons);
      return make("div", { class: "strip-row" }, name, list);
    });
    const same = "The two episodes are the same.";
    const note = traces.length > 1 ? make("p", { class: "soft parting" }, parting === null ? same : `The two episodes part at token ${parting}.`) : null;
    find("strips").classList.toggle("two", traces.length > 1);
    find("strips").replaceChildren(...strips, ...(note ? [note] : []));
  }

  const buttonsOf = (index) => [...find("strips").querySelectorAll(".strip")[index].querySelectorAll("button")];

  function colour() {
    const quantity = byName[view.by];
    const ends = range(quantity);
    drawLegend(quantity, ends);
    traces.forEach((trace, index) =>
      buttonsOf(index).forEach((button, t) => {
        const step = trace.steps[t];
        const [hue, strength] = tint(quantity, step[view.by] === null ? null : real(step[view.by]), ends);
        button.dataset.hue = hue;
        button.style.setProperty("--tint", strength.toFixed(4));
        button.querySelector(".figure").textContent = shown(quantity, step);
        button.setAttribute("aria-label", `Token ${t}: ${step.text}, ${quantity.label} ${shown(quantity, step)}`);
      }),
    );
  }

  function mark() {
    traces.forEach((trace, index) =>
      buttonsOf(index).forEach((button, t) => {
        const chosen = t === Math.min(view.t, trace.steps.length - 1);
        button.setAttribute("aria-selected", String(t === view.t));
        button.tabIndex = chosen ? 0 : -1;
      }),
    );
  }

  // The curves

  const WIDE = 300;
  const HIGH = 48;

  function buildCurves() {
    const wanted = [["kl"], ["value", "policy_value"], ["advantage", "exact_advantage"], ["state_regret", "log_ratio"]];
    const names = wanted.map((choice) => choice.find(isKnown)).filter(Boolean);
    find("curves").classList.toggle("two", traces.length > 1);
    find("curves").replaceChildren(...(length > 1 ? names.map(curve) : []));
  }

  function curve(name) {
    const quantity = byName[name];
    const all = traces.flatMap((trace) => values(trace, name)).filter(Number.isFinite);
    const [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
    const x = (t) => (WIDE * (t + 0.5)) / length;
    const y = (value) => 3 + (HIGH - 6) * (high > low ? (high - value) / (high - low) : 0.5);
    const picture = make("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    picture.append(make("line", { class: "zero", x1: 0, x2: WIDE, y1: y(0), y2: y(0) }), make("line", { class: "cursor", y1: 0, y2: HIGH }));
    traces.forEach((trace, index) => {
      const points = values(trace, name).flatMap((value, t) => (Number.isFinite(value) ? [`${x(t)},${y(value)}`] : []));
      picture.append(make("polyline", { class: `s${index + 1}`, points: points.join(" ") }));
    });
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      select(Math.floor((length * (event.clientX - box.left)) / box.width));
    });
    const figure = make("div", { class: "curve", "data-name": name }, make("div", { class: "curve-head" }, make("span", { class: "soft" }, quantity.label), ...traces.map((_, index) => make("span", { class: `now s${index + 1}` }))), picture);
    figure.title = quantity.meaning;
    return figure;
  }

  function markCurves() {
    for (const figure of find("curves").children) {
      const quantity = byName[figure.dataset.name];
      const at = (WIDE * (view.t + 0.5)) / length;
      figure.querySelector(".cursor").setAttribute("x1", at);
      figure.querySelector(".cursor").setAttribute("x2", at);
      figure.querySelectorAll(".now").forEach((now, index) => {
        const step = traces[index].steps[view.t];
        now.textContent = step ? shown(quantity, step) : "–";
      });
    }
  }

  // Choosing

  function select(t, focus = null) {
    view.t = Math.min(length - 1, Math.max(0, t));
    mark();
    markCurves();
    find("panels").replaceChildren(...traces.map((trace, index) => panel(trace, index, view.t, data)));
    if (focus !== null) buttonsOf(focus)[Math.min(view.t, traces[focus].steps.length - 1)].focus();
    const by = view.by === "kl" ? "" : `&by=${view.by}`;
    history.replaceState(null, "", `#t=${view.t}${by}`);
  }

  function chooseColour(name) {
    view.by = name;
    colour();
  }

  // A link says where to start, as in #t=5&by=advantage.
  function follow() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const by = asked.get("by");
    if (by && by in byName && isKnown(by)) chooseColour((find("by").value = by));
    const t = Number(asked.get("t"));
    select(Number.isInteger(t) ? t : 0);
  }

  function press(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    const strips = [...find("strips").querySelectorAll(".strip")];
    const inside = strips.findIndex((strip) => strip.contains(event.target));
    const goal = { ArrowLeft: view.t - 1, ArrowRight: view.t + 1 };
    if (inside >= 0) Object.assign(goal, { Home: 0, End: traces[inside].steps.length - 1 });
    const across = { ArrowUp: inside - 1, ArrowDown: inside + 1 }[event.key];
    if (inside >= 0 && across in traces) buttonsOf(across)[Math.min(view.t, traces[across].steps.length - 1)].focus();
    else if (event.key in goal) select(goal[event.key], inside >= 0 ? inside : null);
    else return;
    event.preventDefault();
  }

  async function copy(value, what) {
    const text = JSON.stringify(value, null, 2);
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without leave to use the clipboard: the older way, by a selected text field.
      const field = make("textarea", { class: "visually-hidden", readonly: "" }, text);
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    find("said").textContent = `${what} copied`;
  }

  function fillMenu() {
    const options = quantities.map((quantity) => {
      const option = make("option", { value: quantity.name }, quantity.label);
      option.disabled = !isKnown(quantity.name);
      return option;
    });
    find("by").replaceChildren(...options);
    view.by = quantities.find((quantity) => isKnown(quantity.name)).name;
    find("by").value = view.by;
  }

  fillMenu();
  buildStrips();
  buildCurves();
  colour();
  find("view").hidden = false;
  follow();
  find("by").addEventListener("change", (event) => {
    chooseColour(event.target.value);
    select(view.t);
  });
  find("copy-state").addEventListener("click", () => copy(traces.map((trace) => trace.steps[view.t] ?? null), "State"));
  find("copy-episode").addEventListener("click", () => copy({ format: data.format, parting, traces }, "Episode"));
  document.addEventListener("keydown", press);
  addEventListener("hashchange", follow);
})();
