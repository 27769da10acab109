"use strict";
(() => {
  const PAGE = 40;
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("cards");
  if (!box) return;
  const query = document.getElementById("filter");
  const order = document.getElementById("order");
  const chips = document.getElementById("chips");
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const languages = new Set();
  const files = data.files.map((file) => ({
    ...file,
    hay: [file.path, file.language, ...file.phrases, ...file.topics, ...file.symbols.map((s) => s[1]), ...file.headings.map((h) => h[0])]
      .join("\n").toLowerCase(),
  }));
  let found = [];
  let shown = 0;

  // Every text of a file reaches the page as a text node: nothing of it is ever parsed as HTML.
  const el = (tag, css, ...children) => {
    const node = document.createElement(tag);
    if (css) node.className = css;
    node.append(...children.filter((child) => child !== null && child !== ""));
    return node;
  };
  const number = (value) => value.toLocaleString("en");
  const size = (bytes) => {
    if (bytes < 1024) return bytes + " B";
    let value = bytes / 1024;
    let unit = "KB";
    if (value >= 1024) { value /= 1024; unit = "MB"; }
    return (value >= 100 ? value.toFixed(0) : value.toFixed(1)) + " " + unit;
  };
  const plural = (n, noun) => number(n) + " " + noun + (n === 1 ? "" : "s");
  const path = (text) => {
    const cut = text.lastIndexOf("/") + 1;
    const folders = text.slice(0, cut).split("/").flatMap((part, index) => (index ? ["/", el("wbr"), part] : [part]));
    return el("span", "path", el("span", "dir", ...folders), text.slice(cut));
  };
  const list = (title, rows) => {
    const items = rows.map(([name, kind, line]) => el("li", "", el("code", "", name), el("small", "", " " + kind + (line ? " \u00b7 line " + line : ""))));
    return el("details", "", el("summary", "", title), el("ol", "", ...items));
  };

  const card = (file) => {
    const facts = [file.language, size(file.size)];
    if (file.lines) facts.push(plural(file.lines, "line"));
    if (file.code) facts.push(number(file.code) + " of code");
    if (file.kind === "prose" && file.words) facts.push(plural(file.words, "word"));
    const article = el("article", "card", el("h3", "", path(file.path)), el("p", "meta", facts.join(" \u00b7 ")));
    if (file.by) {
      const by = el("p", "meta", "Read by " + file.by + " in " + file.took + " ");
      if (file.over) by.append(el("span", "tag bad", "taken over"));
      article.append(by);
    }
    if (file.phrases.length) article.append(el("ul", "keys", ...file.phrases.map((text) => el("li", "", text))));
    if (file.sentences.length)
      article.append(el("ul", "say", ...file.sentences.map(([text, line]) => el("li", "", text, el("small", "", "line " + line)))));
    if (file.headings.length) article.append(list(plural(file.headings.length, file.kind === "prose" ? "heading" : "section"), file.headings.map(([text, line]) => [text, "", line])));
    if (file.symbols.length) article.append(list(plural(file.symbolsTotal, "symbol"), file.symbols.map(([kind, name, line]) => [name, kind, line])));
    for (const note of file.notes) article.append(el("p", "note", note));
    return article;
  };

  const SORTS = {
    path: (a, b) => (a.path < b.path ? -1 : 1),
    size: (a, b) => b.size - a.size,
    lines: (a, b) => b.lines - a.lines,
    symbols: (a, b) => b.symbolsTotal - a.symbolsTotal,
    slow: (a, b) => b.ms - a.ms,
  };

  const showMore = () => {
    const next = found.slice(shown, shown + PAGE);
    const part = document.createDocumentFragment();
    for (const file of next) part.append(card(file));
    box.append(part);
    shown += next.length;
    more.hidden = shown >= found.length;
    more.textContent = "Show " + Math.min(PAGE, found.length - shown) + " more";
    count.textContent = plural(found.length, "file") + (shown < found.length ? ", " + number(shown) + " shown" : "");
  };

  const update = () => {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = files.filter((file) => (!languages.size || languages.has(file.language)) && words.every((word) => file.hay.includes(word)));
    found.sort(SORTS[order.value] || SORTS.path);
    box.replaceChildren();
    shown = 0;
    showMore();
  };

  for (const [name, total] of data.languages) {
    const chip = el("button", "", name + " " + number(total));
    chip.type = "button";
    chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => {
      const on = !languages.has(name);
      if (on) languages.add(name); else languages.delete(name);
      chip.setAttribute("aria-pressed", String(on));
      update();
    });
    chips.append(chip);
  }
  let timer = 0;
  query.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(update, 120); });
  order.addEventListener("change", update);
  more.addEventListener("click", () => {
    const first = box.children.length;
    showMore();
    const card = box.children[first];
    if (card) { card.tabIndex = -1; card.focus({ preventScroll: true }); }
  });
  document.addEventListener("click", (event) => {
    const asker = event.target.closest("[data-find]");
    if (!asker) return;
    query.value = asker.dataset.find;
    languages.clear();
    for (const chip of chips.children) chip.setAttribute("aria-pressed", "false");
    update();
    document.getElementById("files").scrollIntoView();
    query.focus({ preventScroll: true });
  });
  update();
})();
