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
/* Captions of the sidebar are headings; say of which level. */
for (const caption of document.querySelectorAll("p.caption[role=heading]")) {
  caption.ariaLevel = "2";
}
/* What is folded is named by the words that are seen. */
for (const summary of document.querySelectorAll("details.hide > summary[aria-label]")) {
  summary.removeAttribute("aria-label");
}
