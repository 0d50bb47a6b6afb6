// The page's charts: those near the window are drawn at once, all others in idle time, or when the page is printed.
// document.documentElement.dataset.charts tells how many of them are drawn, as in "3/12".
"use strict";
(() => {
  const { data, figures } = window.textgym;
  const root = document.documentElement;
  let charts = [];
  const stale = new Set();
  const drawn = new Set();
  const hidden = new Set(); // names of agents
  const config = { displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: false, doubleClick: "reset" };
  const MANY = 12, FIRST = 8; // of many agents only the first of the leaderboard are drawn at the start
  const settings = { shown: new Set(), measure: "", unit: "episodes", problem: {} };
  const nameOf = (agent) => data.agents[agent].name;
  if (data.order.length > MANY) data.order.slice(FIRST).forEach((agent) => hidden.add(nameOf(agent)));

  function colour(name) {
    // A probe resolves light-dark() to what is shown.
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  function palette() {
    const found = Object.fromEntries(["ink", "soft", "line", "strong-line", "paper", "raised"].map((name) => [name, colour(name)]));
    found.series = data.agents.map((agent) => colour(`series-${agent.colour}`));
    found.family = getComputedStyle(document.body).fontFamily;
    return found;
  }

  let colours;

  function draw(chart) {
    if (!stale.has(chart) || !chart.offsetParent) return;
    if (!window.Plotly) return void load();
    stale.delete(chart);
    const made = figures[chart.dataset.chart](chart, settings, colours);
    window.Plotly.react(chart, made.data, made.layout, config);
    drawn.add(chart);
    root.dataset.charts = `${drawn.size}/${charts.length}`;
  }

  // Observing anew calls back at once for what is in sight.
  const observer = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "300px" },
  );
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));
  function refresh(some = charts) {
    some.forEach((chart) => {
      stale.add(chart);
      observer.unobserve(chart);
      observer.observe(chart);
    });
    if (window.Plotly) drawRest();
  }
  // One chart in each idle time, however often the page is refreshed; one that fails keeps no other waiting.
  let waiting = false;
  function drawRest() {
    if (waiting) return;
    waiting = true;
    idle(() => {
      waiting = false;
      const next = charts.find((chart) => stale.has(chart) && chart.offsetParent);
      if (!next) return;
      drawRest();
      draw(next);
    });
  }
  const of = (kind) => charts.filter((chart) => chart.dataset.chart === kind);
  const drawAll = () => charts.forEach(draw);

  function legend() {
    const chips = [...document.querySelectorAll(".chip")];
    function show(wanted) {
      settings.shown = new Set(data.order.filter(wanted));
      data.order.forEach((agent) => (settings.shown.has(agent) ? hidden.delete(nameOf(agent)) : hidden.add(nameOf(agent))));
      chips.forEach((chip) => chip.setAttribute("aria-pressed", settings.shown.has(+chip.dataset.agent)));
      refresh();
    }
    show((agent) => !hidden.has(nameOf(agent)));
    chips.forEach((chip) =>
      chip.addEventListener("click", () => {
        const pressed = +chip.dataset.agent;
        show((agent) => (agent === pressed ? !settings.shown.has(agent) : settings.shown.has(agent)));
      }),
    );
    document.getElementById("all").addEventListener("click", () => show(() => true));
    document.getElementById("none").addEventListener("click", () => show(() => false));
  }

  function controls() {
    for (const name of ["measure", "unit"]) {
      const select = document.getElementById(`curve-${name}`);
      settings[name] = select?.value ?? "";
      select?.addEventListener("change", (event) => {
        settings[name] = event.target.value;
        refresh(of("curve"));
      });
    }
    document.getElementById("curve-family")?.addEventListener("change", (event) => {
      document.querySelectorAll("figure[data-family]").forEach((figure) => {
        figure.hidden = event.target.value !== "" && figure.dataset.family !== event.target.value;
      });
      refresh(of("curve"));
    });
    document.querySelectorAll("select[data-for]").forEach((select) => {
      const kind = select.dataset.for;
      const choose = () => {
        settings.problem[kind] = +select.value;
        refresh(of(kind));
      };
      select.addEventListener("change", choose);
      choose();
    });
  }

  function start() {
    observer.disconnect();
    [stale, drawn].forEach((set) => set.clear());
    charts = [...document.querySelectorAll(".chart")];
    root.dataset.charts = `0/${charts.length}`;
    colours = palette();
    controls();
    legend();
  }

  start();
  window.textgym.starts.push(start);
  document.addEventListener("themechange", () => {
    colours = palette();
    refresh();
  });
  document.addEventListener("drawall", drawAll);
  addEventListener("beforeprint", drawAll);

  // Plotly is large: it comes once the page stands, or with the first chart that is needed.
  let asked = false;
  function load() {
    if (asked) return;
    asked = true;
    const script = document.createElement("script");
    script.src = "plotly.min.js";
    script.addEventListener("load", () => refresh());
    document.body.append(script);
  }
  addEventListener("load", () => idle(load));
})();
