// What the pieces of the microscope are made of: numbers as text, elements, tokens. Texts are set as text, never as markup.
"use strict";
const parts = (() => {
  // Numbers

  const finite = { inf: Infinity, "-inf": -Infinity, nan: NaN };
  const real = (value) => (typeof value === "string" ? finite[value] : value);

  function number(value, signed = false) {
    if (value === null || value === undefined) return "–";
    const x = real(value);
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "?" : x > 0 ? "∞" : "−∞";
    const text = Math.abs(x).toFixed(3);
    if (Number(text) === 0) return text;
    return (x < 0 ? "−" : signed ? "+" : "") + text;
  }

  function share(value) {
    if (value === null) return "–";
    if (value === 0 || value >= 0.0005) return value.toFixed(3);
    return value.toExponential(0).replace("-", "−");
  }

  // Elements

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "polyline", "line", "circle"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const dot = (index) => make("span", { class: `dot s${index + 1}` });

  // Blanks at the ends of a token are drawn: they are part of it.
  function token(text) {
    const [, before, middle, after] = /^( *)(.*?)( *)$/su.exec(text);
    const blanks = (count) => Array.from({ length: count }, () => make("span", { class: "blank" }, " "));
    return make("span", { class: "token-text" }, ...blanks(before.length), middle, ...blanks(after.length));
  }

  return { real, number, share, make, dot, token };
})();
