// The theme's arrow before a chapter of several pages has no name for a screen reader.
addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll("nav li > details > summary")) {
    const chapter = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `Further pages of ${chapter.textContent.trim()}`);
  }
});

// What is folded on the screen, but for code, is there on paper.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("article details:not(.hide)")) fold.open = true;
});
