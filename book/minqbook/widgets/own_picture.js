// The reader's own picture: a network in FP32, INT8 and INT4 reads it in the page, side by side.
import { h } from "./kit/elements.js";
import { widget } from "./kit/figure.js";
import { FORMS, likeliest, parting, race, size, weakest } from "./picture/answers.js";
import { cards, drawDecibels, sayPlace, timesTable } from "./picture/cards.js";
import { about, answer, available, compared, open, samplePixels, timed, weight } from "./picture/engine.js";
import { pad } from "./picture/pad.js";
import { normalised, opaque } from "./picture/resize.js";
import { camera, fromFile, squareOf } from "./picture/take.js";

const TOP = 3;
const SMALL_FIRST = ["int4", "int8", "fp32"]; // so that there is soon something to see
const WITHOUT =
  "This copy of the book was built without the engine, so these are stored answers, computed when the networks were " +
  "made. In a copy with the engine, your own picture goes here.";
const BEFORE = "Stored answers. Nothing has been loaded yet.";

/** Stored decibels; where nothing was lost there is no number. */
const decibels = stored => Object.fromEntries(
  Object.entries(stored?.sqnr ?? {}).map(([form, values]) => [form, values.map(v => v ?? Infinity)]),
);

async function imageOf(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  return image;
}

export default {
  render({ model, el }) {
    const w = widget({ model, el }), { samples, networks } = w.get("stored");
    const live = available();
    const titles = Object.fromEntries(Object.entries(networks).map(([key, n]) => [key, n.title]));
    // source: {sample: 0}, {drawn: true}, or {image, name}; state: what is shown of it
    let source = { sample: w.get("sample") }, known = null, at = null, turn = 0, loading = null;
    let state = { tops: {}, sqnr: {}, here: false };
    const clocks = {}, loaded = new Set(); // network -> {form: ms}; networks whose forms are all here
    const network = () => w.get("network"), facts = () => networks[network()];
    const name = index => known?.[network()]?.classes[index] ?? facts().classes[index] ?? `class ${index}`;

    // --- What stands in the figure ---

    const choice = w.segmented({
      label: "Network",
      trait: "network",
      options: Object.entries(networks).map(([key, n]) =>
        [key, `${n.title}: ${n.kind === "digit" ? "digits" : "photos"}`]),
    });
    w.controls(choice);
    const sheet = pad({ onDrawn: () => changed({ drawn: true }) });
    const strip = h("div", { class: "mqp-strip", role: "group", "aria-label": "Pictures that stand ready" });
    const problem = h("p", { class: "mqp-problem", role: "alert" });
    const hidden = { class: "mq-hidden", tabindex: -1, "aria-label": "A picture file" };
    const file = h("input", { type: "file", accept: "image/*", ...hidden });
    const lens = camera({
      onTaken: still => taken(() => still, "from the camera"),
      onProblem: text => tell(text),
    });
    const draw = w.button({ label: "Draw a digit", onClick: () => drawNow() });
    const pick = w.button({ label: "Choose a picture", onClick: () => file.click() });
    const shoot = w.button({ label: "Use the camera", onClick: () => lens.open() });
    const own = h("div", { class: "mqp-own" }, draw.el, pick.el, lens.possible ? shoot.el : null, file, lens.el,
      h("p", { class: "mqp-note" }, "or drop one here. It never leaves this page."));
    const start = w.button({ label: "", onClick: () => loadAll() });
    const bar = h("progress", { class: "mqp-bar", max: 1, value: 0, "aria-label": "Loading", hidden: true });
    const again = w.button({ label: "Time them again", onClick: () => clock() });
    const status = h("p", { class: "mqp-note" }), result = cards();
    const left = h("div", { class: "mqp-left" }, sheet.el, strip, live ? own : null);
    const chart = w.plot({ height: 180, margin: { top: 30, bottom: 24 }, min: 260 });
    const place = h("p", { class: "mqp-note" }), clockBox = h("div");
    w.add(left, h("div", { class: "mqp-right" }, result.el,
      h("div", { class: "mq-buttons" }, live ? start.el : null, again.el), bar, problem, status,
      chart.el, place, clockBox));
    const caption = w.caption();
    let scale = null, kindShown = null, stripOf = null;
    chart.hover(px => {
      const count = facts().sites.length;
      at = scale ? Math.max(0, Math.min(count - 1, Math.round(scale.invert(px)))) : null;
      w.redraw();
    });

    // --- Where pictures come from ---

    const tell = text => { problem.textContent = text; };
    const busy = text => { status.textContent = text; };
    async function taken(image, called) { // one that cannot be used leaves the last picture where it is
      tell("");
      try {
        const whole = await image();
        squareOf(whole, facts());
        changed({ image: whole, name: called });
      } catch (error) {
        tell(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
      }
    }
    const fromDisk = chosen => taken(() => fromFile(chosen), chosen?.name);
    file.addEventListener("change", () => {
      if (file.files[0]) fromDisk(file.files[0]);
      file.value = "";
    });
    if (live) {
      w.listen(w.root, "dragover", event => event.preventDefault());
      w.listen(w.root, "drop", event => {
        event.preventDefault();
        fromDisk(event.dataTransfer.files[0]);
      });
    }
    function drawNow() {
      sheet.draw(true);
      changed({ drawn: true, empty: true });
      sheet.canvas.focus();
      if (!loaded.has(network())) loadAll();
    }

    /** The square of bytes that the network sees. */
    async function pixelsOf() {
      const { size: side } = facts();
      if (source.image) return squareOf(source.image, facts());
      if (source.drawn) return squareOf(sheet.canvas, facts());
      return samplePixels(`samples.${facts().kind}`, source.sample, side, progress);
    }
    async function show() {
      if (source.drawn) return sheet.describe("Your drawing. Draw with the pointer, or move the pen with the arrow " +
        "keys; Space sets it down and lifts it.");
      sheet.draw(false);
      if (source.image) {
        const { size: side } = facts(), seen = new OffscreenCanvas(side, side);
        seen.getContext("2d").putImageData(new ImageData(opaque(await pixelsOf()), side), 0, 0);
        sheet.show(seen);
        return sheet.describe(`Your picture, ${source.name}, as the network sees it.`);
      }
      const sample = samples[facts().kind][source.sample];
      sheet.describe(`A picture that stands ready: ${sample.alt}.`);
      sheet.show(await imageOf(sample.src));
    }

    // --- Loading and running ---

    let came = 0, whole = 1;
    const progress = bytes => {
      came += bytes;
      bar.value = Math.min(1, came / whole);
    };
    async function loadAll() {
      const wanted = network();
      if (loading || loaded.has(wanted)) return;
      loading = wanted;
      [came, whole] = [0, Math.max(1, weight(wanted, SMALL_FIRST))];
      bar.hidden = false;
      bar.value = 0;
      tell("");
      w.redraw();
      try {
        known = { ...known, [wanted]: await about(wanted, progress) };
        for (const form of SMALL_FIRST) {
          busy(`Loading ${titles[wanted]} in ${form.toUpperCase()} …`);
          await open(wanted, form, progress);
          if (network() === wanted) await run([form], false);
        }
        loaded.add(wanted);
      } catch (error) {
        tell(`This did not work: ${error.message}.`);
      }
      loading = null;
      bar.hidden = true;
      busy("");
      if (loaded.has(wanted) && network() === wanted) {
        await run();
        await clock();
      }
      w.redraw();
    }

    /** Answers of the forms that are here; what a newer picture overtook is dropped. */
    async function run(forms = SMALL_FIRST, deep = true) {
      if (source.empty) return;
      const mine = turn, of = network(), info = known[of];
      try {
        const x = normalised(await pixelsOf(), info.mean, info.std);
        const tops = forms.length < 3 && state.here ? { ...state.tops } : {};
        for (const form of forms) tops[form] = likeliest(await answer(of, form, x), TOP);
        const sqnr = deep ? await compared(of, x) : {};
        if (mine !== turn) return;
        state = { tops, sqnr, here: true };
        w.root.dataset.answers = deep ? "here" : "partly";
      } catch (error) {
        if (mine === turn) tell(`This did not work: ${error.message}.`);
      }
      w.redraw();
    }
    async function clock() {
      const of = network(), info = known[of];
      if (!loaded.has(of)) return;
      busy("Timing: the three take turns …");
      try {
        const x = normalised(await pixelsOf(), info.mean, info.std);
        const forms = FORMS.map(([form]) => form);
        clocks[of] = await timed(of, forms, x, info.kind === "digit" ? 500 : 1500);
        w.root.dataset.timed = Object.keys(clocks).join(" ");
      } catch (error) {
        tell(`This did not work: ${error.message}.`);
      }
      busy("");
      w.redraw();
    }
    /** Another picture, or another network. */
    function changed(next) {
      source = next;
      turn += 1;
      kindShown = facts().kind;
      delete w.root.dataset.answers;
      tell("");
      const stored = source.sample === undefined ? null : facts().answers[source.sample];
      state = { tops: stored?.tops ?? {}, sqnr: decibels(stored), here: false };
      show().then(() => { if (loaded.has(network())) run(); }, error => tell(error.message));
      w.redraw();
    }

    // --- Drawing ---

    function ready() { // the pictures that stand ready, for this kind of network
      if (stripOf === facts().kind) return;
      stripOf = facts().kind;
      strip.replaceChildren(...samples[stripOf].map((sample, index) => h(
        "button",
        { type: "button", "aria-label": sample.alt, "data-sample": index, click: () => changed({ sample: index }) },
        h("img", { src: sample.src, alt: sample.alt, class: "dark-light" }),
      )));
    }
    w.on("network", () => changed(source.image || facts().kind === kindShown ? source : { sample: 0 }));
    changed(source);
    return w.start(() => {
      const here = loaded.has(network()), mine = clocks[network()] ?? {};
      ready();
      for (const button of strip.children)
        button.setAttribute("aria-pressed", String(Number(button.dataset.sample) === source.sample));
      draw.el.hidden = facts().kind !== "digit";
      start.el.hidden = here;
      start.limit({ disabled: Boolean(loading) });
      start.label(loading ? `Loading ${titles[loading]} …` : `Run ${titles[network()]} here ` +
        `(${size(weight(network(), SMALL_FIRST))})`);
      again.el.hidden = !here;
      if (!live) busy(WITHOUT);
      else if (!loading && !status.textContent && !state.here && source.sample !== undefined) busy(BEFORE);
      else if (status.textContent === BEFORE && state.here) busy("");
      const waits = source.empty ? "draw something" : loading ? "coming" : live ? "press Run" : "";
      for (const [form] of FORMS)
        result.set(form, { tops: state.tops[form], bytes: facts().bytes[form], time: mine[form], name, waits });
      const view = { sqnr: state.sqnr, sites: facts().sites, at };
      scale = drawDecibels(chart, view);
      place.textContent = sayPlace(view);
      clockBox.replaceChildren(...timesTable(clocks, titles));
      const said = Object.keys(state.tops).length === 3
        ? [parting(state.tops, name), weakest(state.sqnr, facts().sites), mine.fp32 ? `${race(mine)}.` : ""] : [];
      caption.set(said.filter(Boolean).join(" ") || "The three answers come here, side by side.");
    });
  },
};
