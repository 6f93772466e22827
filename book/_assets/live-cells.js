// Live cells: Run, Edit, Reset, Stop and "Run all above" for each code cell that needs no torch (`.mq-live`, by
// book/_ext/live.py); a line with ways out for those that do (`.mq-torch`). Python itself is live.js.
(() => {
  "use strict";
  const live = window.minqLive;
  if (!live?.available) return;

  let clock = 0; // counts runs and edits: what came after what
  const cells = [];

  const h = window.minqElement;

  class Cell {
    constructor(root, number) {
      Object.assign(this, { root, number, ran: 0, edited: 0, generation: -1, editor: null, busy: false });
      this.input = root.querySelector(".cell_input");
      this.stored = root.querySelector(":scope > .cell_output");
      this.source = this.original = this.input.querySelector("pre").textContent.replace(/\n$/, "");
      this.playing = Boolean(this.stored?.querySelector(".ws-root, script[type$='widget-view+json']"));
      this.makeBar();
    }
    get name() { return `cell ${this.number}`; }

    makeBar() {
      const button = (textContent, onclick, title) => h("button", { type: "button", textContent, title, onclick });
      this.buttons = {
        run: button("Run", () => this.run(), "Run this cell here, in the page (Ctrl+Enter)"),
        edit: button("Edit", () => this.edit(), "Change the code"),
        above: button("Run all above", () => runAbove(this), "Run the live cells before this one"),
        reset: button("Reset", () => this.reset(), "Back to the book's code and its output"),
        stop: button("Stop", () => live.stop(), "End what runs; all names are lost"),
      };
      for (const [key, b] of Object.entries(this.buttons)) {
        b.className = `mq-live-${key}`;
        b.setAttribute("aria-label", `${b.textContent}: ${this.name}`);
      }
      this.status = h("span", { className: "mq-live-status" });
      this.status.setAttribute("role", "status");
      this.bar = h("div", { className: "mq-live-bar" }, ...Object.values(this.buttons), this.status);
      this.bar.setAttribute("role", "group");
      this.bar.setAttribute("aria-label", `Python, ${this.name}`);
      this.output = h("div", { className: "mq-live-output cell_output", hidden: true });
      const before = this.root.querySelector(":scope > details.above-input") ?? this.input;
      before.after(this.bar, this.output);
      this.root.addEventListener("keydown", (e) => {
        if (e.key !== "Enter" || !(e.ctrlKey || e.metaKey || e.shiftKey) || e.defaultPrevented) return;
        if (!this.bar.contains(e.target) && !this.input.contains(e.target)) return;
        e.preventDefault();
        this.run();
      });
      this.buttons.above.hidden = this.number === 1;
      this.refresh();
    }

    // What the buttons offer and what the line beside them says, from what happened so far.
    refresh() {
      const { run, edit, reset, stop } = this.buttons;
      run.hidden = this.busy;
      stop.hidden = !this.busy;
      edit.hidden = Boolean(this.editor);
      reset.hidden = this.busy || (!this.editor && !this.ran);
      if (this.busy) return;
      const before = cells.slice(0, this.number - 1);
      const since = before.find((c) => c.edited > this.ran || (c.ran > this.ran && c.generation === live.generation));
      let words = "";
      if (this.ran && this.generation !== live.generation) words = "From before the stop: its names are gone.";
      else if (this.ran && this.edited > this.ran) words = "Edited since it ran.";
      else if (this.ran && since) words = `Stale: ${since.name} changed or ran after it. Run it again.`;
      else if (this.ran && this.took) words = this.took;
      this.status.textContent = words;
      this.root.classList.toggle("mq-live-stale", /^(Stale|Edited|From)/.test(words));
    }

    async edit() {
      if (this.editor) return;
      const details = this.input.closest("details");
      if (details) details.open = true;
      this.editor = {}; // while it loads
      this.refresh();
      const place = h("div", { className: "mq-live-editor" });
      this.code = this.input.firstElementChild;
      this.input.prepend(place);
      this.editor = await live.editor(place, this.source, {
        label: `Code of ${this.name}`,
        onRun: () => this.run(),
        onChange: (text) => this.change(text),
      });
      this.code.hidden = true;
      this.editor.focus();
      this.refresh();
    }
    change(text) {
      if (text === this.source) return;
      this.source = text;
      this.edited = ++clock;
      refreshAll();
    }
    reset() {
      const changed = this.source !== this.original;
      if (this.editor) {
        this.input.querySelector(".mq-live-editor")?.remove();
        this.code.hidden = false;
        this.editor = null;
      }
      this.source = this.original;
      if (changed && this.ran) this.edited = ++clock; // what comes after rests on the other code
      this.ran = 0;
      this.output.hidden = true;
      this.output.replaceChildren();
      if (this.stored) this.stored.hidden = false;
      if (this.redrawn) window.minqRedraw(this.stored.querySelector(".ws-root"), null);
      this.redrawn = false;
      this.buttons.run.focus();
      refreshAll();
    }

    async run() {
      if (this.busy) return null;
      this.busy = true;
      const focused = document.activeElement === this.buttons.run;
      this.refresh();
      if (focused) this.buttons.stop.focus();
      this.status.textContent = "Waiting …";
      const keep = this.output.offsetHeight || this.stored?.offsetHeight || 0; // nothing may jump while it runs
      this.output.style.minHeight = `${this.playing ? 0 : keep}px`;
      this.output.replaceChildren();
      this.output.hidden = false;
      this.widget = null;
      if (this.stored && !this.playing) this.stored.hidden = true;
      const result = await live.run(this.source, {
        name: this.name,
        onStatus: (text) => { this.status.textContent = text || "Running …"; },
        onOutput: (output) => this.append(output),
      });
      this.busy = false;
      this.generation = result.status === "stopped" || result.status === "failed" ? -1 : live.generation;
      this.ran = ++clock;
      this.took = result.status === "ok" ? `Ran here in ${duration(result.ms)}.` : "";
      if (result.status !== "ok") this.explain(result);
      else if (this.playing) this.output.replaceChildren(...this.printed(), this.figure());
      this.output.style.minHeight = "";
      const stopped = document.activeElement === this.buttons.stop;
      refreshAll();
      if (stopped) this.buttons.run.focus();
      return result;
    }
    // The figure that plays below: drawn anew where a cell was edited, now or before; and what there is to say of it.
    figure() {
      const host = this.stored.querySelector(".ws-root"), isOther = cells.some((c) => c.source !== c.original);
      const drawn = (isOther || this.redrawn) && this.widget && host && window.minqRedraw?.(host, this.widget);
      this.redrawn ||= drawn;
      const done = drawn ? "The figure below is drawn from your values." : this.widget
        ? "Python made this figure anew, with the book's values; the one below plays by itself."
        : "The figure below is the book's: this cell made another value.";
      return h("p", { className: "mq-live-note", textContent: done });
    }
    printed() { return [...this.output.children].filter((e) => !e.classList.contains("mq-live-text")); }

    append(output) {
      if (output.kind === "widget") {
        try { this.widget = JSON.parse(output.text); } catch { this.widget = null; } // a value that is no number
        return;
      }
      const last = this.output.lastElementChild;
      if (/^std/.test(output.kind) && last?.className === `mq-live-${output.kind}`) last.append(output.text);
      else this.output.append(live.show(output));
      const picture = this.output.lastElementChild;
      const alt = this.stored?.querySelector("img")?.alt;
      if (picture.tagName === "IMG" && alt) picture.alt = this.source === this.original ? alt : `As edited: ${alt}`;
    }

    explain({ status, text, line, traceback }) {
      const where = line ? `Line ${line}: ` : "";
      const box = h("div", { className: "mq-live-error" }, h("p", {}, h("strong", { textContent: where }), text));
      box.setAttribute("role", "alert");
      const unrun = cells.slice(0, this.number - 1).some((c) => c.generation !== live.generation);
      if (status === "error" && /^NameError/.test(text) && unrun)
        box.append(h("p", {}, "The cells above have not run yet. ", h("button", {
          type: "button", textContent: "Run them, then this cell",
          onclick: async () => { if (await runAbove(this)) this.run(); },
        })));
      if (traceback) {
        const summary = h("summary", { textContent: "The whole traceback" });
        box.append(h("details", {}, summary, h("pre", { textContent: traceback })));
      }
      this.output.append(box);
    }
  }

  const duration = (ms) => (ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(1)} s`);
  const refreshAll = () => cells.forEach((cell) => cell.refresh());

  // The live cells before one, in order; ends at the first that fails. Whether all ran.
  async function runAbove(cell) {
    for (const each of cells.slice(0, cell.number - 1))
      if ((await each.run())?.status !== "ok") return false;
    return true;
  }

  // Cells that need torch: the page's own links to where it runs.
  function offer(root) {
    const link = (part, words) => {
      const href = document.querySelector(`.bd-main a[href*="${part}"], header a[href*="${part}"]`)?.href;
      return href ? [h("a", { href, textContent: words })] : [];
    };
    const ways = [...link("colab.research.google.com", "Colab"), ...link("mybinder.org", "Binder")];
    const line = h("p", { className: "mq-live-note" }, "Needs PyTorch");
    ways.forEach((way, i) => line.append(i ? " or " : "; runs in ", way));
    const before = root.querySelector(":scope > details.above-input") ?? root.querySelector(".cell_input");
    before.after(line);
  }

  for (const root of document.querySelectorAll(".mq-live")) cells.push(new Cell(root, cells.length + 1));
  document.querySelectorAll(".mq-torch").forEach(offer);
  document.documentElement.dataset.live = String(cells.length); // all buttons are there
})();
