// When the figures in sight are drawn: the scripts that no figure needs (text/late), in their order; then the formulas.
// `minqSettled` ends when the page looks and works as it will.
const REACH = ".bd-article :is(.text_html > div, mjx-container[display], .cell_output pre, pre)";

// What scrolls sideways, a wide table or formula, can be reached and scrolled with the keyboard.
function reach() {
  for (const e of document.querySelectorAll(REACH))
    if (e.scrollWidth > e.clientWidth && !e.hasAttribute("tabindex")) e.tabIndex = 0;
}

function run({ src }) {
  const script = Object.assign(document.createElement("script"), { src, async: false });
  document.head.append(script);
  return new Promise((done) => { script.onload = script.onerror = done; });
}

window.minqSettled = (async () => {
  await window.minqDrawn;
  await new Promise((painted) => setTimeout(painted));
  document.documentElement.classList.remove("mq-first"); // now the sections out of sight
  await Promise.all([...document.querySelectorAll('script[type="text/late"]')].map(run));
  await window.MathJax?.startup?.promise;
  reach();
})();
addEventListener("resize", reach);
