/* Pages read from disk may not fetch others: search results then come without an extract. */
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}
/* A box that scrolls can be reached by the keyboard. */
addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  for (const box of document.querySelectorAll(
    "div.highlight pre, .table-wrapper, div.math, mjx-container, .cell_output .output")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
/* A phone shrinks figures and their labels: there each opens alone, where fingers enlarge it.
   Those of notebooks are links already. */
if (matchMedia("(max-width: 48rem)").matches) {
  for (const image of document.querySelectorAll("article figure img")) {
    if (image.closest("a")) continue;
    const link = document.createElement("a");
    link.href = image.src;
    image.replaceWith(link);
    link.append(image);
  }
}
/* Cells of wide tables of words know the head of their column: a phone shows it beside them. */
for (const table of document.querySelectorAll("article table.entries")) {
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  for (const row of table.tBodies[0].rows) {
    for (const cell of [...row.cells].slice(1)) cell.dataset.head = heads[cell.cellIndex];
  }
}
/* Captions of the sidebar are headings; say of which level. */
for (const caption of document.querySelectorAll("p.caption[role=heading]")) {
  caption.ariaLevel = "2";
}
/* What is folded is named by the words that are seen. */
for (const summary of document.querySelectorAll("details.hide > summary[aria-label]")) {
  summary.removeAttribute("aria-label");
}
/* A button beside each piece of code copies it: of a dialogue with Python what one would type. */
const typed = (text) => {
  const lines = text.trimEnd().split("\n");
  const said = lines.filter((line) => /^(>>>|\.\.\.)( |$)/.test(line));
  return said.length ? said.map((line) => line.slice(4)).join("\n") : lines.join("\n");
};
for (const box of document.querySelectorAll("article div.highlight")) {
  if (box.closest(".cell_output")) continue;
  const code = box.querySelector("pre");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy-code";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(typed(code.textContent));
      button.textContent = "Copied";
    } catch {
      // Where the clipboard is closed to pages, the reader's own command copies the selection.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  box.append(button);
}
