// A JupyterLab extension: chapters read in JupyterLab as they do in the HTML book.
// It changes what is shown, never a notebook: captions with numbers stand below the figures,
// citations, equations and terms become links, cells that the book hides are folded, and "real"
// cells are called "drawn" in a run on drawings.
"use strict";
(() => {
  const PLUMBING = ["hide-input", "hide-cell", "remove-input", "remove-cell"];
  const CSS = `
    .cellaug-caption { margin: 0.3em 0 1em var(--jp-cell-prompt-width); max-width: 50em; }
    .cellaug-term { text-decoration: underline dotted; cursor: help; }
    .jp-RenderedMarkdown a.cellaug-eq { cursor: pointer; }
    .cellaug-equation { margin: 0.5em 0; padding: 0.2em 1em; border-left: 3px solid #8a8a8a; }`;
  const book = fetch(new URL("book.json", document.currentScript.src)).then(a => a.json());
  let shared;

  function element(name, attributes, text) {
    const made = Object.assign(document.createElement(name), attributes);
    made.textContent = text;
    return made;
  }

  /** What stands for {role}`content`; null for a role of another kind. */
  function readable(role, content, known, typeset) {
    const [, shown, target] = /^(.*?)\s*<(.*)>$/.exec(content) || [null, content, content];
    if (role === "term") {
      const title = known.terms[target.toLowerCase()] || "";
      return [element("span", { className: "cellaug-term", title, tabIndex: 0 }, shown)];
    }
    if (role.startsWith("cite")) {
      const parts = ["["];
      for (const key of target.split(",").map(key => key.trim())) {
        const { text, title, url } = known.citations[key] || { text: key, title: "", url: "" };
        if (parts.length > 1) parts.push("; ");
        const link = { title, href: url, target: "_blank", rel: "noopener" };
        parts.push(url ? element("a", link, text) : element("span", { title }, text));
      }
      return [...parts, "]"];
    }
    if (role === "eq") {
      const number = target.replace("eq-", "");
      const tex = known.equations[number];
      const link = element("a", { className: "cellaug-eq", href: "#", title: tex }, `Eq. ${number}`);
      link.onclick = event => {
        event.preventDefault();
        event.stopPropagation();
        const block = link.closest("p, li") || link;
        if (block.nextSibling?.className === "cellaug-equation") {
          block.nextSibling.remove();
        } else if (tex) {
          const text = `$$${tex} \\tag{${number}}$$`;
          block.after(element("div", { className: "cellaug-equation" }, text));
          typeset?.(block.nextSibling);
        }
      };
      return [link];
    }
    return null;
  }

  function decorateText(node, known, typeset, open) {
    for (const code of node.querySelectorAll(":not(pre) > code")) {
      const before = code.previousSibling;
      const role = before?.nodeType === Node.TEXT_NODE && /\{([\w:]+)\}$/.exec(before.data);
      const parts = role && readable(role[1], code.textContent, known, typeset);
      if (parts) {
        before.data = before.data.slice(0, -role[0].length);
        code.replaceWith(...parts);
      }
    }
    for (const link of node.querySelectorAll("a[href]")) {
      const [, path] = /([\w/]+)\.(?:ipynb|md)\b/.exec(link.getAttribute("href")) || [];
      const page = Object.keys(known.pages).find(page => `/${path}`.endsWith(`/${page}`));
      if (page && link.host === location.host) {
        const { title, file } = known.pages[page];
        const made = element(file ? "a" : "span", {}, link.textContent || title);
        if (file) {
          made.href = "#";
          made.onclick = event => (event.preventDefault(), event.stopPropagation(), open(file));
        } else {
          made.title = "a page of the HTML book";
        }
        made.dataset.page = page;
        link.replaceWith(made);
      }
    }
  }

  /** The word for the cells of the set, as the chapter has said it in an output; "real" at first. */
  function wordFor(notebook) {
    for (const cell of notebook.widgets) {
      const outputs = cell.model.type === "code" ? cell.model.outputs : { length: 0 };
      for (let k = 0; k < outputs.length; k++) {
        const word = outputs.get(k).metadata.cellaug?.word;
        if (word) return word;
      }
    }
    return "real";
  }

  /** Put the word where the text says real<!-- run -->, as the HTML does. */
  function nameCells(cell, word) {
    const node = cell.rendered && cell.node.querySelector(".jp-RenderedMarkdown");
    if (!node) return;
    const old = [...node.querySelectorAll(".cellaug-run")];
    if (old.length) {
      for (const span of old) span.textContent !== word && (span.textContent = word);
      return;
    }
    const words = [...cell.model.sharedModel.getSource().matchAll(/\breal\b(<!-- run -->)?/g)];
    if (word === "real" || !words.some(found => found[1])) return;
    const texts = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    const places = [];
    for (let text = texts.nextNode(); text; text = texts.nextNode()) {
      for (const found of text.data.matchAll(/\breal\b/g)) places.push([text, found.index]);
    }
    if (places.length !== words.length) return; // it is not clear which is which
    for (const [text, start] of places.filter((_, k) => words[k][1]).reverse()) {
      const named = text.splitText(start);
      named.splitText("real".length);
      named.replaceWith(element("span", { className: "cellaug-run" }, word));
    }
  }

  function decorateFigure(cell, known, word) {
    const figure = cell.model.getMetadata("mystnb")?.figure;
    const area = figure && cell.node.querySelector(".jp-Cell-outputArea");
    const old = cell.node.querySelector(".cellaug-caption");
    const drawn = area?.querySelector(".jp-RenderedImage, .jp-RenderedSVG");
    if (drawn && !old) {
      const number = known.figures[figure.name];
      const capital = word[0].toUpperCase() + word.slice(1);
      const text = figure.caption.replace(/\breal\b/g, word).replace(/\bReal\b/g, capital);
      const caption = element("div", { className: "cellaug-caption" }, ` ${text}`);
      caption.prepend(element("b", {}, number || "Figure."));
      area.append(caption);
    } else if (old && !drawn) {
      old.remove();
    }
  }

  function fold(notebook) {
    for (const cell of notebook.cells) {
      if ((cell.getMetadata("tags") || []).some(tag => PLUMBING.includes(tag))) {
        cell.setMetadata("jupyter", { ...cell.getMetadata("jupyter"), source_hidden: true });
      }
    }
    notebook.dirty = false; // it is not saved with the chapter
  }

  async function activate(app, tracker) {
    const known = await book;
    document.head.append(element("style", {}, CSS));
    const open = path => app.commands.execute("docmanager:open", { path });
    async function follow(panel) {
      await panel.context.ready;
      fold(panel.content.model);
      const typesetter = panel.content.rendermime.latexTypesetter;
      const typeset = typesetter && (node => typesetter.typeset(node));
      let due = 0;
      function decorate() {
        due = 0;
        if (panel.isDisposed) return;
        const word = wordFor(panel.content);
        for (const cell of panel.content.widgets) {
          if (cell.model.type === "code") decorateFigure(cell, known, word);
          if (cell.model.type === "markdown") nameCells(cell, word);
        }
        for (const node of panel.content.node.querySelectorAll(".jp-RenderedMarkdown")) {
          decorateText(node, known, typeset, open);
        }
      }
      const observer = new MutationObserver(() => (due ||= setTimeout(decorate, 50)));
      observer.observe(panel.content.node, { childList: true, subtree: true });
      panel.disposed.connect(() => observer.disconnect());
      decorate();
    }
    tracker.widgetAdded.connect((_, panel) => void follow(panel));
    tracker.forEach(follow);
  }

  window._JUPYTERLAB ||= {};
  window._JUPYTERLAB.cellaug = {
    init: scope => void (shared = scope),
    get: async () => {
      const [version] = Object.values(shared["@jupyterlab/notebook"]);
      const { INotebookTracker } = (await version.get())();
      const requires = [INotebookTracker];
      const plugin = { id: "cellaug:book", autoStart: true, requires, activate };
      return () => ({ __esModule: true, default: plugin });
    },
  };
})();
