// The editor of live cells, over CodeMirror 6: book/_ext/live.py joins its modules and this file, where `require`
// knows them. Colours are classes, so that they follow the theme (live.css).
const { EditorState } = require("@codemirror/state");
const { EditorView, drawSelection, highlightSpecialChars, keymap } = require("@codemirror/view");
const {
  HighlightStyle, bracketMatching, indentOnInput, indentUnit, syntaxHighlighting,
} = require("@codemirror/language");
const { defaultKeymap, history, historyKeymap, indentLess, indentMore } = require("@codemirror/commands");
const { closeBrackets, closeBracketsKeymap } = require("@codemirror/autocomplete");
const { python } = require("@codemirror/lang-python");
const { tags } = require("@lezer/highlight");

const COLOURS = HighlightStyle.define([
  { tag: [tags.keyword, tags.operatorKeyword, tags.controlKeyword], class: "mq-code-keyword" },
  { tag: [tags.string, tags.special(tags.string)], class: "mq-code-string" },
  { tag: [tags.number, tags.bool, tags.null], class: "mq-code-number" },
  { tag: tags.comment, class: "mq-code-comment" },
  { tag: [tags.definition(tags.variableName), tags.function(tags.variableName)], class: "mq-code-name" },
]);

// Escape, then Tab, leaves the editor; Tab alone indents.
function leaveWithEscape() {
  let free = false;
  return EditorView.domEventHandlers({
    keydown(event, view) {
      if (event.key === "Escape") free = true;
      else if (event.key === "Tab" && !free) {
        event.preventDefault();
        return (event.shiftKey ? indentLess : indentMore)(view);
      } else if (event.key !== "Shift") free = false;
      return false;
    },
    blur() { free = false; },
  });
}

window.minqEditor = (element, source, { onRun, onChange, label = "Code" } = {}) => {
  const go = () => { onRun?.(); return true; };
  const view = new EditorView({
    parent: element,
    state: EditorState.create({
      doc: source,
      extensions: [
        leaveWithEscape(),
        keymap.of([
          { key: "Mod-Enter", run: go }, { key: "Ctrl-Enter", run: go }, { key: "Shift-Enter", run: go },
          ...closeBracketsKeymap, ...defaultKeymap, ...historyKeymap,
        ]),
        EditorView.lineWrapping, // nothing scrolls sideways, on a phone neither
        history(), drawSelection(), highlightSpecialChars(), indentOnInput(), bracketMatching(), closeBrackets(),
        python(), syntaxHighlighting(COLOURS), indentUnit.of("    "), EditorState.tabSize.of(4),
        EditorView.contentAttributes.of({
          "aria-label": `${label}. Tab indents; Escape, then Tab, leaves`, spellcheck: "false",
          autocorrect: "off", autocapitalize: "off",
        }),
        EditorView.updateListener.of((update) => { if (update.docChanged) onChange?.(update.state.doc.toString()); }),
      ],
    }),
  });
  return {
    get: () => view.state.doc.toString(),
    set: (text) => view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: text } }),
    focus: () => view.focus(),
  };
};
