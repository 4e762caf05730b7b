// The theme's arrow before a chapter of several pages has no name for a screen reader.
addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll("nav li > details > summary")) {
    const chapter = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `Further pages of ${chapter.textContent.trim()}`);
  }
});

// What is wider than a phone says that it goes on, until it is moved.
function sayWhatGoesOn(boxes) {
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth < box.clientWidth + 8) continue;
    const hint = Object.assign(document.createElement("p"), { className: "sideways" });
    hint.textContent = "Move it sideways to see the rest →";
    (box.closest("figure, div.math") ?? box).before(hint);
    box.addEventListener("scroll", () => hint.remove(), { once: true });
  }
}
addEventListener("load", () => {
  sayWhatGoesOn("article div.scroll, article a.image-reference");
  window.MathJax?.Hub.Queue(() => sayWhatGoesOn("article div.math > .MathJax_Display"));
});

// What is folded on the screen, but for code, is there on paper.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("article details:not(.hide)")) fold.open = true;
});
