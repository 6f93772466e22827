// What this browser keeps of the exercises: answers, tries, and the day a check passed. None of it leaves the device.
//
//   minqProgress.get(label)             { answer, tries, passed } of an exercise; null, 0, null at first
//   minqProgress.change(label, values)  keeps some of them; false if they cannot be kept, as a very long answer
//   minqProgress.forget()               all of them
//   minqProgress.isKept                 false where the browser keeps nothing: a page on a disk, a private window
//   minqProgress.write()                all as the text of a file
//   minqProgress.read(text, labels)     the entries of such a text, { label: entry }, and how many others it has
//   minqProgress.merge(entries)         takes them over; the number of those that stay as they are here
window.minqProgress = (() => {
  "use strict";
  const KEY = `minq-exercises ${new URL(".", location.href).pathname}`; // a book for itself
  const FORMAT = "minq exercises", VERSION = 1;
  const LONGEST = 20_000; // characters of an answer
  const EMPTY = { answer: null, tries: 0, passed: null };
  const isPlain = (v) => typeof v === "object" && v !== null && !Array.isArray(v);

  function isDay(text) {
    return typeof text === "string" && /^\d{4}-\d\d-\d\d$/.test(text) && !Number.isNaN(Date.parse(text));
  }

  /** An entry with nothing else in it, or what is wrong with it, in words. */
  function checked(entry) {
    if (!isPlain(entry)) return "it is no entry";
    const { answer = null, tries = 0, passed = null } = entry;
    if (answer !== null && typeof answer !== "string") return "the answer is no text";
    if (answer?.length > LONGEST) return `the answer has more than ${LONGEST.toLocaleString("en")} characters`;
    if (!Number.isInteger(tries) || tries < 0) return "the number of tries is no number";
    if (passed !== null && !isDay(passed)) return "the day it was passed is no date";
    return { answer, tries, passed };
  }

  let memory = {}, isKept = true; // memory: where there is no storage
  function load() {
    let found;
    try {
      found = JSON.parse(localStorage.getItem(KEY));
    } catch {
      return memory; // no storage, or spoilt
    }
    if (!isKept) return memory;
    const entries = Object.entries(isPlain(found) ? found : {}).map(([label, entry]) => [label, checked(entry)]);
    return Object.fromEntries(entries.filter(([, entry]) => isPlain(entry)));
  }
  function save(all) {
    memory = all;
    try {
      localStorage.setItem(KEY, JSON.stringify(all));
      isKept = true;
    } catch {
      isKept = false;
    }
  }
  save(load()); // and see whether it can be kept

  return {
    get isKept() { return isKept; },
    get: (label) => ({ ...EMPTY, ...load()[label] }),
    change(label, values) {
      const all = load(), entry = checked({ ...EMPTY, ...all[label], ...values });
      if (!isPlain(entry)) return false;
      save({ ...all, [label]: entry });
      return true;
    },
    forget: () => save({}),
    write: () => JSON.stringify({ format: FORMAT, version: VERSION, exercises: load() }, null, 1),
    read(text, labels) {
      let file;
      try {
        file = JSON.parse(text);
      } catch {
        throw new Error("It is no file of answers, or only a part of one: it cannot be read.");
      }
      if (!isPlain(file) || file.format !== FORMAT || !isPlain(file.exercises))
        throw new Error("It does not come from the progress page of this book.");
      if (file.version !== VERSION)
        throw new Error("It comes from another edition of this book, whose answers this one cannot read.");
      const known = Object.entries(file.exercises).filter(([label]) => labels.includes(label));
      const entries = known.map(([label, given]) => {
        const entry = checked(given);
        if (!isPlain(entry)) throw new Error(`Its entry of ${label} is broken: ${entry}.`);
        return [label, entry];
      });
      return { entries: Object.fromEntries(entries), others: Object.keys(file.exercises).length - known.length };
    },
    merge(entries) {
      const all = load();
      let stay = 0;
      for (const [label, entry] of Object.entries(entries)) {
        if (all[label]?.passed && !entry.passed) stay++;
        else all[label] = entry;
      }
      save(all);
      return stay;
    },
    day: (text) => new Date(text).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" }),
    today: () => new Date().toLocaleDateString("en-CA"), // as 2026-11-30, here and not in Greenwich
  };
})();
