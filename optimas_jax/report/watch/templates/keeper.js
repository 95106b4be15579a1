(() => {
  // Within the report: tells the page around it what is open and where it is, and is told so again after a renewal.
  const parts = (names) => {
    const seen = new Map();
    return [...document.querySelectorAll(names)].map((part) => {
      const name = part.id || part.name || (part.querySelector("summary") || part).textContent.trim().slice(0, 200);
      const number = (seen.get(name) || 0) + 1;
      seen.set(name, number);
      return [`${name}#${number}`, part];
    });
  };
  const state = () => {
    const above = [...document.querySelectorAll("[id]")].filter((part) => part.getBoundingClientRect().top <= 1).pop();
    return {
      open: parts("details").map(([key, part]) => [key, part.open]),
      fields: parts("input, select").map(([key, part]) => [key, part.type === "checkbox" ? part.checked : part.value]),
      focus: document.hasFocus() ? (parts("summary, a, button, input, select").find(([, part]) => part === document.activeElement) || [""])[0] : "",
      anchor: above ? [above.id, above.getBoundingClientRect().top] : null,
      scroll: [scrollX, scrollY],
    };
  };
  const restore = (known) => {
    const open = new Map(known.open);
    for (const [key, part] of parts("details")) if (open.has(key)) part.open = open.get(key);
    const fields = new Map(known.fields);
    for (const [key, part] of parts("input, select")) {
      if (!fields.has(key)) continue;
      const field = part.type === "checkbox" ? "checked" : "value";
      if (part[field] === fields.get(key)) continue;
      part[field] = fields.get(key);
      for (const kind of ["input", "change"]) part.dispatchEvent(new Event(kind, { bubbles: true }));
    }
    const anchor = known.anchor && document.getElementById(known.anchor[0]);
    scrollTo(...known.scroll);
    if (anchor) scrollBy(0, anchor.getBoundingClientRect().top - known.anchor[1]);
    const focus = known.focus && parts("summary, a, button, input, select").find(([key]) => key === known.focus);
    if (focus) focus[1].focus({ preventScroll: true });
  };
  addEventListener("message", (event) => {
    if (event.source !== parent || !event.data) return;
    if (event.data.ask) parent.postMessage({ state: state() }, "*");
    if (event.data.restore) {
      restore(event.data.restore);
      parent.postMessage({ restored: true }, "*");
    }
  });
  addEventListener("load", () => parent.postMessage({ ready: true }, "*"));
})();
