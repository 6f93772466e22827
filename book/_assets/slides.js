// Deferred, so that MathJax is there. A deck starts when its formulas are set: then what is too tall for a slide goes
// on to the next one.
(async () => {
  const [WIDTH, HEIGHT] = [1280, 720];
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  const slides = document.querySelector(".slides");
  slides.classList.add("measure"); // until the next frame: no widget wakes
  for (const first of slides.querySelectorAll("section.leaf")) {
    for (let slide = first; ; ) {
      const blocks = [...slide.children].filter((b) => !b.matches("aside, h1, h2, h3, h4"));
      if (blocks.length < 2) break; // one block: the slide scrolls
      const top = slide.getBoundingClientRect().top, room = HEIGHT - 64; // and a little for late fonts
      if (blocks.every((b) => b.getBoundingClientRect().bottom - top <= room)) break;
      const fits = blocks.filter((b) => b.getBoundingClientRect().bottom - top <= room).length;
      const next = slide.cloneNode();
      const heading = slide.querySelector("h2, h3");
      if (heading) next.append(heading.cloneNode(true));
      next.append(...blocks.slice(Math.max(1, fits)));
      const notes = slide.querySelector("aside.notes");
      if (notes) next.append(notes.cloneNode(true));
      slide.after(next);
      slide = next;
    }
  }
  slides.classList.remove("measure");
  const fit = (host) => requestAnimationFrame(() => { // a tall widget is drawn smaller
    const leaf = host.closest("section.leaf");
    host.style.zoom = 1;
    const rest = leaf.scrollHeight - host.offsetHeight;
    if (host.offsetHeight) host.style.zoom = Math.max(0.6, Math.min(1, (HEIGHT - rest) / host.offsetHeight));
  });
  const drawn = new MutationObserver((changes) => changes.forEach(({ target }) => fit(target)));
  for (const host of slides.querySelectorAll(".ws-root")) drawn.observe(host, { attributeFilter: ["data-state"] });
  for (const e of slides.querySelectorAll(".cell_output")) e.dataset.preventSwipe = "";
  const busy = () => document.activeElement?.closest("input, select, textarea, button, pre[tabindex], .ws-root");
  await Reveal.initialize({
    width: WIDTH, height: HEIGHT, margin: 0.02, center: false, hash: true, slideNumber: "c/t", transition: "none",
    pdfMaxPagesPerSlide: 1, pdfSeparateFragments: false,
    keyboardCondition: (e) => e.key === "Escape" || !busy(), // arrow keys belong to a focused slider
    plugins: [RevealNotes],
  });
  Reveal.on("slidechanged", ({ currentSlide }) => {
    document.activeElement?.blur();
    currentSlide.querySelectorAll('.ws-root[data-state="ready"]').forEach(fit);
  });
})();
