// What scrolls sideways, a wide table or formula, can be reached and scrolled with the keyboard.
const reach = () => {
  for (const e of document.querySelectorAll(".bd-article :is(.text_html > div, mjx-container[display], .cell_output pre, pre)")) {
    if (e.scrollWidth > e.clientWidth && !e.hasAttribute("tabindex")) e.tabIndex = 0;
  }
};
addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reach));
addEventListener("resize", reach);
