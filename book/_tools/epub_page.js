// One page of the built book as a chapter of an e-book: run in the page, answers its text as XHTML.
// Formulas become the MathML that MathJax made for screen readers, drawings keep the colours they
// have now, and widgets have been replaced by pictures before. What only a browser can do, goes.
(pictures) => {
  const article = document.querySelector("article.bd-article, article");
  const GONE =
    "script, style, noscript, button, dialog, template, .headerlink, .copybtn, .prev-next-area, " +
    ".mq-live-bar, .mq-question, .cm-editor, input, select, textarea, iframe, video, audio";
  const KEPT = new Set(
    "id class href src alt title lang colspan rowspan scope role start open".split(" "),
  );
  const PAINT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "fill-opacity"];
  const LETTERS = ["font-size", "font-family", "font-weight", "font-style", "text-anchor"];

  for (const [index, root] of [...article.querySelectorAll("[data-epub]")].entries()) {
    const image = document.createElement("img");
    Object.assign(image, pictures[index]);
    root.replaceWith(image);
  }
  for (const svg of article.querySelectorAll("svg")) {
    for (const node of svg.querySelectorAll(":not(title, desc, style)")) {
      const style = getComputedStyle(node);
      if (style.display === "none") node.setAttribute("display", "none");
      for (const name of [...PAINT, ...(node.matches("text, tspan") ? LETTERS : [])])
        node.setAttribute(name, style.getPropertyValue(name));
      node.removeAttribute("style");
      node.removeAttribute("class");
    }
  }
  for (const formula of article.querySelectorAll("mjx-container")) {
    const math = formula.querySelector("mjx-assistive-mml math");
    if (!math) continue;
    // A numbered row: MathML Core knows no labels, so the number becomes the row's last cell.
    for (const row of math.querySelectorAll("mlabeledtr")) {
      const plain = document.createElementNS(row.namespaceURI, "mtr");
      const [label, ...cells] = row.children;
      plain.append(...cells, label);
      row.replaceWith(plain);
    }
    if (formula.hasAttribute("display")) math.setAttribute("display", "block");
    formula.replaceWith(math);
  }
  for (const node of article.querySelectorAll(GONE)) node.remove();
  for (const image of article.querySelectorAll("img:not([alt])")) image.alt = "";
  for (const words of article.querySelectorAll("summary p")) {
    if (!words.matches(".expanded")) words.before(...words.childNodes); // one of the two titles
    words.remove();
  }
  for (const node of article.querySelectorAll("*")) {
    if (node.closest("svg, math")) {
      for (const { name } of [...node.attributes])
        if (/^(data-|aria-hidden|tabindex|focusable|on)/.test(name)) node.removeAttribute(name);
      continue;
    }
    for (const { name } of [...node.attributes])
      if (!KEPT.has(name) && !/^aria-label/.test(name)) node.removeAttribute(name);
  }
  // Pages that sit on a disk link to each other by name.
  for (const link of article.querySelectorAll("a[href]")) {
    const here = new URL(link.getAttribute("href"), document.baseURI);
    if (here.protocol === "file:") {
      const name = decodeURIComponent(here.pathname.split("/").pop());
      link.setAttribute("href", name.replace(/\.html$/, ".xhtml") + here.hash);
    }
  }
  // Several ids on one place and the same id twice are allowed in no XML.
  const seen = new Set();
  for (const node of article.querySelectorAll("[id]")) {
    if (seen.has(node.id) || !/^[A-Za-z_][\w.-]*$/.test(node.id)) node.removeAttribute("id");
    else seen.add(node.id);
  }
  return new XMLSerializer().serializeToString(article);
};
