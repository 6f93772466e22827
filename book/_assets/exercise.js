// The exercises of a chapter, answered and checked in the page: book/_ext/exercises_page.py lists them, live.js runs
// Python, progress.js keeps what was written. Without Python the page stays as it is.
//
//   minqExercises.judge(label, answer, check, options)   runs both as a notebook would; resolves to
//     { verdict: "right" | "wrong" | "error" | "none",   wrong: the check's own words; none: it did not run
//       words, printed, line, traceback }                line: of the answer, where known
window.minqExercises = (() => {
  "use strict";
  const live = window.minqLive, progress = window.minqProgress;
  const ANSWER = "your answer", CHECK = "the check";

  // --- Verdicts -----------------------------------------------------------------------------------------------------

  /** The last line of the answer that a traceback names. */
  function lineIn(traceback) {
    const found = [...traceback.matchAll(new RegExp(`File "<${ANSWER}>", line (\\d+)`, "g"))].at(-1);
    return found ? Number(found[1]) : null;
  }

  function verdictOf({ status, text, traceback = "", line }, isAnswer) {
    if (status !== "error") return { verdict: "none", words: text, line: null, traceback: "" };
    const [, kind, message] = text.match(/^(\w+)(?:: ([\s\S]*))?$/) ?? [null, "", text];
    const taught = kind === "AssertionError" || (kind === "NotImplementedError" && message);
    return {
      verdict: taught ? "wrong" : "error",
      words: taught && message ? message : text,
      line: taught ? null : (lineIn(traceback) ?? (isAnswer ? line : null)),
      traceback: taught ? "" : traceback,
    };
  }

  async function judge(label, answer, check, { onStatus } = {}) {
    const cells = [[ANSWER, answer, true], [CHECK, check, false]];
    let printed = "";
    for (const [name, source, fresh] of cells) {
      const result = await live.run(source, { space: label, name, fresh, onStatus });
      if (result.status !== "ok") return { printed: printed + (result.stdout ?? ""), ...verdictOf(result, fresh) };
      if (name === CHECK) return { verdict: "right", words: result.stdout, printed, line: null, traceback: "" };
      printed += result.stdout;
    }
  }

  // --- What stands on the page --------------------------------------------------------------------------------------

  const h = window.minqElement;
  const button = (textContent, onclick, className = "") =>
    h("button", { type: "button", className, textContent, onclick });

  /** What follows a task up to the next one: its solutions, in words and code, and its check. */
  function following(task) {
    const found = [];
    let node = task.nextElementSibling;
    for (; node && !node.matches(".exercise, section"); node = node.nextElementSibling)
      if (node.matches(".tag_solution, .solution, .tag_check")) found.push(node);
    return found;
  }

  function elsewhere(name, address) {
    const link = document.querySelector(`.dropdown-item[href*="${address}"]`);
    return h("a", { href: link?.href ?? "#", textContent: name, className: "mq-ex-link" });
  }

  function needsTorch(task) {
    const places = [elsewhere("Colab", "colab.research"), " or ", elsewhere("Binder", "mybinder.org")];
    const words = "This exercise works on a network in PyTorch, which does not run in a page. Check it in ";
    task.after(h("p", { className: "mq-live-note mq-ex-note" }, words, ...places, ", or on your own machine."));
  }

  function put(result, { verdict, words, printed, line, traceback }) {
    const said = { right: "✓ Right. ", wrong: "Not yet: ", error: "Python stopped: ", none: "" }[verdict];
    const where = line ? ` (line ${line} of your answer)` : "";
    const text = words.trimEnd(), lines = `${text.includes("\n") ? "\n" : ""}${text}${where}`;
    result.dataset.verdict = verdict;
    result.replaceChildren(
      ...(printed ? [h("pre", { className: "mq-ex-printed", textContent: printed.trimEnd() })] : []),
      h("p", { className: "mq-ex-words" }, h("b", { textContent: said }), lines),
      ...(traceback
        ? [h("details", {}, h("summary", { textContent: "The whole message" }), h("pre", { textContent: traceback }))]
        : []),
    );
  }

  class Exercise {
    constructor(task, { label, stub, html, check }) {
      Object.assign(this, { label, stub, check, editor: null });
      const caption = task.querySelector(".caption-number") ?? task.querySelector("p strong"); // "Task 1.2."
      const title = caption?.textContent.trim().replace(/\.$/, "") || label;
      this.title = title;
      this.later = following(task);
      this.code = h("div", { className: "mq-ex-code mq-live-editor" });
      this.html = html;
      this.mark = h("span", { className: "mq-ex-mark" });
      this.waits = h("span", { className: "mq-live-status", role: "status" });
      this.result = h("div", { className: "mq-ex-result", role: "status" });
      const note = "A solution opens once you have tried.";
      this.note = h("p", { className: "mq-live-note mq-ex-note", textContent: note });
      this.write = button("Write an answer", () => this.edit());
      this.run = button("Check", () => this.ask(), "mq-live-run");
      this.stop = button("Stop", () => live.stop(), "mq-live-stop");
      this.reset = button("Reset", () => this.begin());
      this.stop.hidden = true;
      const row = [this.write, this.run, this.stop, this.reset, this.mark, this.waits];
      const buttons = h("div", { className: "mq-live-bar" }, ...row);
      this.root = h("div", { className: "mq-exercise" }, this.code, buttons, this.result, this.note);
      this.root.setAttribute("role", "group");
      this.root.setAttribute("aria-label", `Your answer to ${title}`);
      this.code.onclick = () => { if (!this.editor) this.edit(); };
      task.after(this.root);
      for (const node of this.later) if (node.matches(".tag_check")) node.classList.add("mq-ex-check");
      this.show(progress.get(label).answer);
      this.follow();
    }
    get answer() { return this.editor?.get() ?? progress.get(this.label).answer ?? this.stub; }

    /** The answer, or the stub as it was printed, before anybody edits it. */
    show(answer) {
      if (answer === null) this.code.innerHTML = this.html;
      else this.code.replaceChildren(h("pre", { textContent: answer }));
    }
    async edit() {
      this.opening ??= live.editor(this.code, this.answer, {
        label: this.title, onRun: () => this.ask(), onChange: (text) => this.keep(text),
      });
      const shown = [...this.code.childNodes];
      this.editor = await this.opening;
      for (const node of shown) node.remove();
      this.write.hidden = true;
      this.editor.focus();
    }
    keep(text) {
      const isKept = progress.change(this.label, { answer: text === this.stub ? null : text });
      this.waits.textContent = isKept ? "" : "This answer is too long to be kept.";
    }
    begin() {
      this.keep(this.stub);
      if (this.editor) this.editor.set(this.stub);
      else this.show(null);
      this.result.replaceChildren();
      delete this.result.dataset.verdict;
    }
    async ask() {
      if (this.run.hidden) return; // it runs already
      const answer = this.answer, { tries, passed } = progress.get(this.label);
      this.busy(true);
      const onStatus = (text) => { this.waits.textContent = text; };
      const found = await judge(this.label, answer, this.check, { onStatus });
      this.busy(false);
      put(this.result, found);
      const tried = answer !== this.stub && found.verdict !== "none";
      progress.change(this.label, {
        tries: tries + Number(tried), passed: passed ?? (found.verdict === "right" ? progress.today() : null),
      });
      this.follow();
    }
    busy(isBusy) {
      const [old, now] = isBusy ? [this.run, this.stop] : [this.stop, this.run];
      const moves = document.activeElement === old; // the focus goes with the button
      now.hidden = false;
      if (moves) now.focus();
      old.hidden = true;
      this.waits.textContent = isBusy ? "Checking …" : "";
    }
    /** What depends on tries and on the check. */
    follow() {
      const { tries, passed } = progress.get(this.label), open = tries > 0 || passed !== null;
      this.mark.textContent = passed ? `✓ passed on ${progress.day(passed)}` : "";
      this.note.hidden = open;
      for (const node of this.later) if (!node.matches(".tag_check")) node.classList.toggle("mq-ex-later", !open);
    }
  }

  const listed = JSON.parse(document.getElementById("exercises")?.textContent ?? "[]");
  const all = {};
  if (live?.available && listed.length) {
    for (const exercise of listed) {
      const task = document.getElementById(exercise.label);
      if (!task) continue;
      if (exercise.check) all[exercise.label] = new Exercise(task, exercise);
      else needsTorch(task);
    }
    if (/^#ex-/.test(location.hash)) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  }
  return { judge, all };
})();
