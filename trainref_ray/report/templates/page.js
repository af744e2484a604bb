"use strict";
(() => {
  const controls = document.getElementById("gallery-controls");
  const list = document.getElementById("gallery-list");
  if (!controls || !list) return;
  const original = [...list.children];
  const orders = {
    page: () => original,
    doubtful: () => [...original].sort((a, b) => a.dataset.quality - b.dataset.quality),
    trusted: () => [...original].sort((a, b) => b.dataset.quality - a.dataset.quality),
  };
  const update = () => {
    const { decision, label, order } = controls.elements;
    let shown = 0;
    for (const item of orders[order.value]()) {
      const { given, leading } = item.dataset;
      item.hidden =
        (decision.value !== "" && item.dataset.decision !== decision.value) ||
        (label.value !== "" && given !== label.value && leading !== label.value);
      shown += item.hidden ? 0 : 1;
      list.append(item);
    }
    controls.elements.shown.value = `${shown} of ${original.length} shown`;
  };
  controls.hidden = false;
  controls.addEventListener("input", update);
  controls.addEventListener("submit", (event) => event.preventDefault());
  update();
})();
