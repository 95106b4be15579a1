"use strict";
// Filters: without a script all examples are there, and the filter is not.
for (const filter of document.querySelectorAll("[data-filter]")) {
  const list = document.getElementById(filter.dataset.filter);
  const empty = document.querySelector(`[data-empty="${filter.dataset.filter}"]`);
  const items = [...list.children];
  const fields = [...filter.querySelectorAll("[data-by]")];
  const texts = new Map();
  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };
  const fits = (item) =>
    fields.every(({ dataset, value }) => {
      if (!value) return true;
      return dataset.by === "text" ? textOf(item).includes(value.toLowerCase()) : item.dataset[dataset.by] === value;
    });
  const update = () => {
    let shown = 0;
    for (const item of items) {
      item.hidden = !fits(item);
      shown += !item.hidden;
    }
    filter.querySelector("[data-count]").textContent = `${shown} of ${items.length}`;
    empty.hidden = shown > 0;
  };
  filter.hidden = false;
  for (const kind of ["input", "change"]) filter.addEventListener(kind, update);
  update();
}
// A link to what lies in a closed part opens it.
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let part = target; part; part = part.parentElement) if (part.localName === "details") part.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", open);
open();
