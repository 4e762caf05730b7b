// Search in the text of all pages (search_text.js): every word must occur in a section.
addEventListener("DOMContentLoaded", () => {
  const plain = text => text.normalize("NFD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  const asked = (new URLSearchParams(location.search).get("q") || "").trim();
  const phrase = plain(asked);
  const words = [...new Set(phrase.split(/\s+/).filter(Boolean))];
  const place = document.getElementById("search-results");
  if (!words.length || !place) return;
  for (const field of document.querySelectorAll("form.bd-search input")) field.value = asked;

  const score = ([, title, heading, text]) => {
    const [t, h, body] = [title, heading, text].map(plain);
    if (!words.every(word => h.includes(word) || body.includes(word))) return 0;
    const heads = words.filter(word => h.includes(word)).length;
    const times = words.reduce((sum, word) => sum + body.split(word).length - 1, 0);
    const whole = h.includes(phrase) || body.includes(phrase);
    const titles = words.filter(word => t.includes(word)).length;
    return 1 + 40 * whole + 20 * heads + 5 * titles + Math.min(times, 15);
  };

  const marked = text => {  // the words stand out; the text is never read as HTML
    const [found, low] = [document.createElement("span"), plain(text)];
    let from = 0;
    while (from < text.length && low.length === text.length) {
      const hits = words.map(word => [low.indexOf(word, from), word.length])
        .filter(([at]) => at >= 0).sort((a, b) => a[0] - b[0] || b[1] - a[1]);
      if (!hits.length) break;
      const [at, length] = hits[0];
      found.append(text.slice(from, at));
      const mark = document.createElement("mark");
      mark.textContent = text.slice(at, at + length);
      found.append(mark);
      from = at + length;
    }
    found.append(text.slice(from));
    return found;
  };

  const line = text => {  // about two lines around the first word
    const low = plain(text);
    const wanted = low.includes(phrase) ? [phrase] : words;
    const places = wanted.map(word => low.indexOf(word)).filter(at => at >= 0);
    const at = Math.max(0, Math.min(...places, text.length) - 80);
    const start = at ? text.indexOf(" ", at) + 1 : 0;
    const end = text.indexOf(" ", start + 220);
    const cut = end < 0 ? text.slice(start) : text.slice(start, end) + " …";
    return (start ? "… " : "") + cut;
  };

  const hits = window.bookText.map(entry => [score(entry), entry]).filter(([value]) => value)
    .sort((a, b) => b[0] - a[0]).slice(0, 50);
  const said = document.createElement("p");
  said.setAttribute("role", "status");
  said.textContent = hits.length ? `${hits.length === 50 ? "The first 50" : hits.length} ` +
    `${hits.length === 1 ? "section has" : "sections have"} “${asked}”.` : `No page has “${asked}”.`;
  const list = document.createElement("ol");
  for (const [, [address, title, heading, text]] of hits) {
    const [item, link, where, shown] = ["li", "a", "small", "p"].map(n => document.createElement(n));
    link.href = address;
    link.append(marked(heading));
    where.textContent = title === heading ? "" : ` in ${title}`;
    shown.append(marked(line(text)));
    item.append(link, where, shown);
    list.append(item);
  }
  place.replaceChildren(said, list);
});
