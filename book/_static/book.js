// What is folded on the screen, but for code, is there on paper.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("article details:not(.hide)")) fold.open = true;
});
