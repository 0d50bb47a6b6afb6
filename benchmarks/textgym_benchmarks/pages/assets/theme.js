// Light or dark: as the system has it until the button says otherwise. Set before the page is painted, kept between
// visits, announced by the event "themechange".
"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null; // "light", "dark", or null: as the system has it
  try {
    chosen = localStorage.getItem("textgym-theme");
  } catch {
    // A page opened from a file may have no storage: the choice then lasts as long as the page.
  }

  const own = () => (system.matches ? "dark" : "light");

  function apply() {
    const theme = ["light", "dark"].includes(chosen) ? chosen : own();
    const other = theme === "dark" ? "light" : "dark";
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) {
      button.hidden = false;
      button.textContent = other === "dark" ? "Dark" : "Light";
      button.setAttribute("aria-label", `Switch to ${other} colours`);
    }
    document.dispatchEvent(new CustomEvent("themechange", { detail: theme }));
  }

  function toggle() {
    const other = root.dataset.theme === "dark" ? "light" : "dark";
    chosen = other === own() ? null : other;
    try {
      if (chosen) localStorage.setItem("textgym-theme", chosen);
      else localStorage.removeItem("textgym-theme");
    } catch {
      // As above.
    }
    apply();
  }

  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme")?.addEventListener("click", toggle);
  });
})();
