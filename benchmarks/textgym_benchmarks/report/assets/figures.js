// What each chart shows, as Plotly's data and layout. Names are escaped: Plotly reads some HTML in its labels.
"use strict";
(() => {
  const { data } = window.textgym;
  const narrow = matchMedia("(max-width: 640px)");

  const safe = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const digits = (value) => (Number.isInteger(value) ? {} : { maximumSignificantDigits: 3 });
  const figure = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en", digits(value)).replace("-", "−"));
  const faint = (colour, share) => colour.replace("rgb(", "rgba(").replace(")", `, ${share})`);
  const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  const small = () => (narrow.matches ? 14 : 13);
  const known = (values) => values.filter((value) => value !== null && value !== undefined);

  function axis(colours, title, more = {}) {
    return {
      ...(title && { title: { text: title, font: { size: 14, color: colours.soft }, standoff: 8 } }),
      gridcolor: colours.line,
      linecolor: colours["strong-line"],
      tickfont: { size: small(), color: colours.soft },
      zeroline: false,
      automargin: true,
      fixedrange: true,
      ...more,
    };
  }

  function layout(colours, more) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colours.family, size: 14, color: colours.ink },
      margin: { l: 44, r: 10, t: 10, b: 40 },
      showlegend: false,
      dragmode: false,
      hovermode: "closest",
      hoverlabel: { bgcolor: colours.raised, bordercolor: colours["strong-line"], font: { family: colours.family, size: 14, color: colours.ink } },
      ...more,
    };
  }

  function line(agent, colours, more) {
    const { colour: _, dash, symbol, name } = data.agents[agent];
    const colour = colours.series[agent];
    return {
      type: "scatter",
      mode: "lines+markers",
      name: safe(name),
      line: { color: colour, dash, width: 2 },
      marker: { color: colour, symbol, size: 6 },
      hoverinfo: "text",
      connectgaps: false,
      ...more,
    };
  }

  function band(agent, colours, x, low, high) {
    const kept = [...x.keys()].filter((i) => low[i] !== null && high[i] !== null);
    return {
      type: "scatter",
      mode: "lines",
      x: [...kept.map((i) => x[i]), ...kept.map((i) => x[i]).reverse()],
      y: [...kept.map((i) => high[i]), ...kept.map((i) => low[i]).reverse()],
      fill: "toself",
      showlegend: false,
      fillcolor: faint(colours.series[agent], 0.13),
      line: { width: 0 },
      hoverinfo: "skip",
    };
  }

  // Names beside the right ends of lines, in their colours, moved apart until none covers another; none if there is no
  // room for all. An end is {agent, name, value}; the chart's margins are those of `beside`.
  const ROW = 18, WIDTH = 7.2, NAME = 17; // pixels of a name and of its mean letter; most letters
  const beside = (ends) => ({ l: 40, r: 12 + WIDTH * Math.max(0, ...ends.map((end) => short(end.name, NAME).length)), t: 8, b: 26 });
  function endNames(chart, ends, colours, range, margin) {
    const height = chart.clientHeight - margin.t - margin.b;
    const placed = ends.map((end) => ({ ...end, at: Math.min(Math.max((end.value - range[0]) / (range[1] - range[0]), 0), 1) * height }));
    if (placed.length * ROW > height + ROW) return [];
    placed.sort((a, b) => b.at - a.at);
    placed.forEach((end, i) => (end.at = Math.min(end.at, i ? placed[i - 1].at - ROW : height)));
    placed.reverse().forEach((end, i) => (end.at = Math.max(end.at, i ? placed[i - 1].at + ROW : 0)));
    return placed.map((end) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 4, yref: "paper", y: end.at / height, yanchor: "middle", showarrow: false,
      text: safe(short(end.name, NAME)), font: { size: 13, color: colours.series[end.agent] },
    }));
  }

  // The names of charts whose lines end anywhere: on the right, best first; below where it is narrow.
  const legend = () => ({
    showlegend: true,
    legend: {
      itemsizing: "constant", itemclick: false, itemdoubleclick: false, font: { size: small() - 1 }, bgcolor: "rgba(0,0,0,0)",
      ...(narrow.matches ? { orientation: "h", entrywidth: 0.56, entrywidthmode: "fraction", x: -0.14, y: 0, yref: "container", yanchor: "bottom" } : { x: 1.01, y: 1, xanchor: "left" }),
    },
  });

  const shownOf = (entries, settings) => entries.filter((entry) => settings.shown.has(entry.agent));

  // Optimality has no lower end: the axis has one, and the table below tells the numbers.
  const LEAST = -0.3, MOST = 1.5;
  function optimalityRange(entries) {
    const values = known(entries.flatMap((entry) => [...(entry.mean ?? []), ...(entry.low ?? []), ...(entry.high ?? [])]));
    return [Math.max(LEAST, Math.min(0, ...values) - 0.04), Math.min(MOST, Math.max(1, ...values) + 0.04)];
  }

  function curve(chart, settings, colours) {
    const measure = chart.dataset.measure || settings.measure;
    const entries = shownOf(data.curves[+chart.dataset.problem], settings).map((entry) => ({ ...entry, ...entry[measure] }));
    const traces = entries.filter((entry) => known(entry.mean ?? []).length).flatMap((entry) => {
      const x = entry[settings.unit];
      const name = safe(data.agents[entry.agent].name + (entry.run && `, ${entry.run}`));
      const text = entry.mean.map((mean, i) => {
        const ends = entry.low[i] === null ? "" : ` [${figure(entry.low[i])}, ${figure(entry.high[i])}]`;
        return `${name}<br>${figure(mean)}${ends}<br>${figure(x[i])} ${settings.unit}`;
      });
      return [band(entry.agent, colours, x, entry.low, entry.high), line(entry.agent, colours, { x, y: entry.mean, text, marker: { color: colours.series[entry.agent], symbol: data.agents[entry.agent].symbol, size: 5 }, line: { color: colours.series[entry.agent], dash: data.agents[entry.agent].dash, width: 1.7 } })];
    });
    const range = (measure === "optimality" ? optimalityRange(entries) : padded(entries.flatMap((entry) => [...(entry.mean ?? []), ...(entry.low ?? []), ...(entry.high ?? [])]))) ?? [0, 1];
    const ends = entries.filter((entry) => known(entry.mean ?? []).length).map((entry) => ({ agent: entry.agent, name: data.agents[entry.agent].name + (entry.run && `, ${entry.run}`), value: known(entry.mean).at(-1) }));
    const margin = beside(ends), showticklabels = ends.length > 0 || !entries.length;
    const annotations = showticklabels ? endNames(chart, ends, colours, range, margin) : [{ xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, text: "No run has a value for this measure", font: { size: 13, color: colours.soft } }];
    return {
      data: traces,
      layout: layout(colours, { margin, annotations, xaxis: axis(colours, "", { nticks: 4, rangemode: "tozero", showticklabels }), yaxis: axis(colours, "", { nticks: 5, range, showticklabels }) }),
    };
  }

  // One agent that fell far from the reference would squeeze all others into a corner: axes are made for these.
  function near(entries) {
    const found = entries.filter((entry) => (entry.optimality?.mean.at(-1) ?? 0) >= data.floor);
    return found.length ? found : entries;
  }

  function padded(values) {
    const [least, most] = [Math.min(...known(values)), Math.max(...known(values))];
    const margin = 0.06 * (most - least || 1);
    return known(values).length ? [least - margin, most + margin] : undefined;
  }

  // The path of each agent, a large mark at its end.
  function paths(entries, colours, x, y, describe) {
    return entries.map((entry) => {
      const last = entry[y].mean.length - 1;
      const sizes = entry[y].mean.map((_, i) => (i === last ? 11 : 4));
      return line(entry.agent, colours, {
        x: x(entry),
        y: entry[y].mean,
        text: entry[y].mean.map((_, i) => `${safe(data.agents[entry.agent].name)}<br>${describe(entry, i)}`),
        marker: { color: colours.series[entry.agent], symbol: data.agents[entry.agent].symbol, size: sizes, opacity: 1, line: { width: 0 } },
        line: { color: colours.series[entry.agent], dash: data.agents[entry.agent].dash, width: 1.5 },
      });
    });
  }

  const told = (entry, i) => `reward ${figure(entry.reward.mean[i])}, KL ${figure(entry.kl.mean[i])}<br>${figure(entry.episodes[i])} episodes`;

  function frontier(chart, settings, colours) {
    const problem = settings.problem.frontier;
    const entries = shownOf(data.curves[problem], settings).filter((entry) => known(entry.kl?.mean ?? []).length);
    const traces = paths(entries, colours, (entry) => entry.kl.mean, "reward", told);
    const shown = near(entries);
    const optimum = data.problems[problem].optimum;
    const most = Math.max(...shown.flatMap((entry) => known(entry.kl.mean)), 0.1);
    if (optimum && entries.length) {
      traces.unshift({
        type: "scatter", mode: "lines", x: [0, most], y: [optimum.value, optimum.value + optimum.beta * most],
        line: { color: colours.soft, dash: "dot", width: 1.5 }, hoverinfo: "text", text: ["J = J*", "J = J*"], name: "J = J*",
      });
    }
    const ranges = [padded(shown.flatMap((entry) => entry.kl.mean)), padded([...shown.flatMap((entry) => entry.reward.mean), ...(optimum ? [optimum.value, optimum.value + optimum.beta * most] : [])])];
    return { data: traces, layout: layout(colours, { ...legend(), xaxis: axis(colours, "KL to the reference, nats an answer", { range: ranges[0] }), yaxis: axis(colours, "Reward", { range: ranges[1] }) }) };
  }

  function gold(chart, settings, colours) {
    const entries = shownOf(data.curves[settings.problem.gold], settings).filter((entry) => known(entry.gold?.mean ?? []).length && known(entry.kl?.mean ?? []).length);
    const root = (entry) => entry.kl.mean.map((value) => (value === null ? null : Math.sqrt(Math.max(value, 0))));
    const proxies = entries.map((entry) => line(entry.agent, colours, {
      x: root(entry), y: entry.reward.mean, mode: "lines", showlegend: false,
      line: { color: faint(colours.series[entry.agent], 0.6), dash: "dot", width: 1.5 },
      text: entry.reward.mean.map((value) => `${safe(data.agents[entry.agent].name)}<br>proxy ${figure(value)}`),
    }));
    const golds = paths(entries, colours, root, "gold", (entry, i) => `gold ${figure(entry.gold.mean[i])}, proxy ${figure(entry.reward.mean[i])}<br>KL ${figure(entry.kl.mean[i])}`);
    const shown = near(entries);
    const ranges = [padded(shown.flatMap(root)), padded(shown.flatMap((entry) => [...entry.gold.mean, ...entry.reward.mean]))];
    return { data: [...proxies, ...golds], layout: layout(colours, { ...legend(), xaxis: axis(colours, "√KL, nats", { range: ranges[0] }), yaxis: axis(colours, "Reward: gold with marks, proxy dotted", { range: ranges[1] }) }) };
  }

  function worth(chart, settings, colours) {
    const entries = shownOf(data.curves[+chart.dataset.problem], settings).filter((entry) => known(entry.gold?.mean ?? []).length);
    const traces = paths(entries, colours, (entry) => entry.reward.mean, "gold", (entry, i) => `reward ${figure(entry.reward.mean[i])}, gold ${figure(entry.gold.mean[i])}<br>${figure(entry.episodes[i])} episodes`);
    return { data: traces, layout: layout(colours, { margin: { l: 44, r: 10, t: 8, b: 40 }, xaxis: axis(colours, "Own reward", { nticks: 5 }), yaxis: axis(colours, "Gold", { nticks: 5 }) }) };
  }

  function profiles(chart, settings, colours) {
    const traces = shownOf(data.profiles, settings).flatMap((entry) => {
      const text = entry.share.map((share, i) => `${safe(data.agents[entry.agent].name)}<br>${figure(share)} of runs above ${figure(entry.thresholds[i])}`);
      const bands = entry.low ? [band(entry.agent, colours, entry.thresholds, entry.low, entry.high)] : [];
      return [...bands, line(entry.agent, colours, { mode: "lines", x: entry.thresholds, y: entry.share, text })];
    });
    return { data: traces, layout: layout(colours, { ...legend(), xaxis: axis(colours, "Optimality", { range: [LEAST, 1.1] }), yaxis: axis(colours, "Share of runs above", { range: [-0.02, 1.02] }) }) };
  }

  // Up to three agents share a radar; of more, each has one of its own, with the mean of all in grey.
  const TOGETHER = 3, CELL = { width: 380, height: 340, side: 92, top: 62, bottom: 34 }; // pixels
  function radar(chart, settings, colours) {
    const axes = data.radar.axes.map((axis) => safe(axis).replace(/ (?=\S+$)/, "<br>"));
    const shown = shownOf(data.radar.agents, settings);
    const apart = shown.length > TOGETHER;
    const columns = apart ? Math.max(1, Math.floor(chart.clientWidth / CELL.width)) : 1;
    const rows = apart ? Math.ceil(shown.length / columns) : 1;
    const width = chart.clientWidth, height = apart ? rows * CELL.height : narrow.matches ? 400 : 560;
    chart.style.height = `${height}px`;
    const cut = (value) => (value === null ? null : Math.min(Math.max(value, 0), 1));
    const closed = (values) => ({ r: [...values, values[0]], theta: [...axes, axes[0]], type: "scatterpolar" });
    const mean = axes.map((_, i) => {
      const found = known(shown.map((entry) => cut(entry.values[i])));
      return found.length ? found.reduce((sum, value) => sum + value, 0) / found.length : null;
    });
    const traces = [], polars = {}, annotations = [];
    shown.forEach((entry, i) => {
      const place = apart ? i : 0, subplot = place ? `polar${place + 1}` : "polar";
      const left = (place % columns) / columns, top = 1 - Math.floor(place / columns) / rows;
      polars[subplot] ??= {
        domain: apart ? { x: [left + CELL.side / width, left + 1 / columns - CELL.side / width], y: [top - 1 / rows + CELL.bottom / height, top - CELL.top / height] } : {},
        bgcolor: "rgba(0,0,0,0)",
        radialaxis: { range: [0, 1], tickvals: apart ? [0.5, 1] : [0.25, 0.5, 0.75, 1], angle: 90, tickangle: 90, gridcolor: colours.line, linecolor: colours.line, tickfont: { size: small(), color: colours.soft } },
        angularaxis: { gridcolor: colours.line, linecolor: colours["strong-line"], tickfont: { size: small(), color: colours.ink }, direction: "clockwise" },
      };
      if (apart) {
        traces.push({ ...closed(mean), subplot, mode: "lines", line: { color: colours.soft, dash: "dot", width: 1.5 }, hoverinfo: "skip" });
        annotations.push({ xref: "paper", yref: "paper", x: left + 0.5 / columns, xanchor: "center", y: top, yanchor: "top", showarrow: false, text: `<b>${safe(short(data.agents[entry.agent].name, 36))}</b>`, font: { size: 14, color: colours.series[entry.agent] } });
      }
      const text = [...entry.values, entry.values[0]].map((value, i) => `${safe(data.agents[entry.agent].name)}<br>${axes[i % axes.length]}: ${figure(value)}`);
      traces.push({ ...line(entry.agent, colours, {}), ...closed(entry.values.map(cut)), subplot, text, ...(apart && { fill: "toself", fillcolor: faint(colours.series[entry.agent], 0.18) }) });
    });
    const around = apart ? { l: 0, r: 0, t: 0, b: 0 } : { l: 92, r: 92, t: 40, b: 40 };
    return { data: traces, layout: layout(colours, { ...(!apart && legend()), margin: around, height, annotations, ...polars }) };
  }

  function throughput(chart, settings, colours) {
    const entries = shownOf(data.throughput, settings).filter((entry) => entry.total > 0).reverse(); // who does not learn has no speed
    const names = entries.map((entry) => safe(short(data.agents[entry.agent].name, narrow.matches ? 16 : 48)));
    const rows = entries.map((entry) => String(entry.agent)); // two long names may be cut to one
    const rates = entries.flatMap((entry) => [entry.total, ...entry.problems.map((one) => one.value)]).filter((rate) => rate > 0);
    const ends = [Math.floor(Math.log10(Math.min(...rates))), Math.ceil(Math.log10(Math.max(...rates)))]; // whole decades, so that both ends have a number
    const range = rates.length ? { range: [ends[0] - 0.05, Math.max(ends[1], ends[0] + 1) + 0.05] } : {};
    const dots = entries.map((entry, i) => ({
      type: "scatter", mode: "markers", x: entry.problems.map((one) => one.value), y: entry.problems.map(() => rows[i]),
      marker: { color: faint(colours.series[entry.agent], 0.45), size: 6 }, hoverinfo: "text",
      text: entry.problems.map((one) => `${names[i]} on ${safe(data.problems[one.problem].label)}<br>${figure(one.value)} tokens/s`),
    }));
    const totals = entries.map((entry, i) => ({
      type: "scatter", mode: "markers", x: [entry.total], y: [rows[i]],
      marker: { color: colours.series[entry.agent], symbol: data.agents[entry.agent].symbol, size: 12, line: { color: colours.paper, width: 1.5 } },
      hoverinfo: "text", text: [`${names[i]}, all tasks<br>${figure(entry.total)} tokens/s`],
    }));
    return {
      data: [...dots, ...totals],
      layout: layout(colours, { xaxis: axis(colours, "Tokens per CPU second", { type: "log", dtick: 1, ...range }), yaxis: axis(colours, "", { type: "category", categoryorder: "array", categoryarray: rows, tickvals: rows, ticktext: names, tickfont: { size: 14, color: colours.ink } }) }),
    };
  }

  window.textgym.figures = { curve, frontier, gold, worth, profiles, radar, throughput };
})();
