// The page that shows which exercises are done: it fills the table that book/_ext/exercises_page.py wrote.
(() => {
  "use strict";
  const progress = window.minqProgress, host = document.getElementById("mq-progress");
  if (!host || !progress) return;
  const LARGEST = 1e6; // bytes of a file
  const rows = new Map([...host.querySelectorAll("tr[data-label]")].map((row) => [row.dataset.label, row]));
  const inPage = [...rows].filter(([, row]) => !row.hasAttribute("data-torch")).map(([label]) => label);

  const h = window.minqElement;
  const button = (textContent, onclick) => h("button", { type: "button", textContent, onclick });
  const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

  // --- The state ----------------------------------------------------------------------------------------------------

  const summary = h("p", { className: "mq-progress-summary" });
  const bar = h("progress", { max: inPage.length });
  bar.setAttribute("aria-label", "Exercises passed");
  const unkept = "This browser keeps nothing for this page, so your work is gone when you close it: export it first.";
  const warning = h("p", { className: "mq-live-note", textContent: unkept });

  function draw() {
    let passed = 0;
    for (const label of inPage) {
      const entry = progress.get(label), cell = rows.get(label).querySelector(".mq-progress-state");
      cell.dataset.state = entry.passed ? "passed" : entry.tries ? "tried" : "open";
      cell.textContent = entry.passed
        ? `✓ ${progress.day(entry.passed)}`
        : entry.tries ? count(entry.tries, "try", "tries") : entry.answer !== null ? "begun" : "–";
      passed += entry.passed !== null;
    }
    summary.textContent = `You have passed ${passed} of the ${inPage.length} checks that run in the page.`;
    bar.value = host.dataset.passed = passed;
    warning.hidden = progress.isKept;
  }

  // --- To a file and back -------------------------------------------------------------------------------------------

  const said = h("p", { className: "mq-ex-words", role: "status" });
  function save() {
    const href = URL.createObjectURL(new Blob([progress.write()], { type: "application/json" }));
    h("a", { href, download: `minq-exercises-${progress.today()}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
    said.textContent = "Saved as a file, where your browser keeps what it downloads.";
  }
  async function take(file) {
    if (!file) return;
    try {
      if (file.size > LARGEST)
        throw new Error(`It has ${(file.size / 1e6).toFixed(1)} MB, and a file of answers has some kilobytes.`);
      const { entries, others } = progress.read(await file.text(), inPage);
      const stay = progress.merge(entries), taken = Object.keys(entries).length - stay;
      said.textContent = [
        `Took over ${count(taken, "exercise")} from ${file.name}.`,
        stay ? `${stay} passed here and not there: left as they are.` : "",
        others ? `${others} unknown to this book: left out.` : "",
      ].filter(Boolean).join(" ");
    } catch (error) {
      said.textContent = `${file.name} was not taken over, and nothing has changed. ${error.message}`;
    }
    draw();
  }
  const input = h("input", { type: "file", accept: ".json,application/json", hidden: true, tabIndex: -1 });
  input.setAttribute("aria-label", "A file with your answers");
  input.onchange = async () => {
    await take(input.files[0]);
    input.value = ""; // the same file may be taken again
  };

  const sure = h("span", { className: "mq-progress-sure", hidden: true }, "Forget all answers on this device?");
  const forget = button("Forget all", () => ask(true));
  function ask(asks) {
    sure.hidden = !asks;
    forget.hidden = asks;
    (asks ? no : forget).focus();
  }
  const no = button("Keep them", () => ask(false));
  sure.append(
    button("Forget them", () => {
      progress.forget();
      said.textContent = "All answers on this device are forgotten.";
      draw();
      ask(false);
    }),
    no,
  );

  const buttons = h(
    "div", { className: "mq-live-bar" },
    button("Export", save), button("Import", () => input.click()), button("Print", () => print()), forget, sure, input,
  );
  host.prepend(summary, bar, buttons, said, warning);
  draw();
  addEventListener("storage", draw); // another page of the book
})();
