"use strict";
(() => {
  const form = document.getElementById("answers");
  const { references, classes } = JSON.parse(document.getElementById("facts").textContent);
  const inputs = [...form.querySelectorAll("input[data-key]")];
  const known = new Set(classes);
  let unsaved = false;
  const update = () => {
    for (const input of inputs) {
      const wrong = input.value !== "" && !known.has(input.value);
      input.setCustomValidity(wrong ? `"${input.value}" is none of the classes` : "");
      for (const button of input.closest("li").querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(button.value === input.value));
      }
    }
    const done = inputs.filter((input) => known.has(input.value)).length;
    form.elements.done.value = `${done} of ${inputs.length} answered`;
    form.elements.save.disabled = done === 0;
  };
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  form.addEventListener("input", () => {
    unsaved = true;
    update();
  });
  form.addEventListener("click", (event) => {
    const button = event.target.closest(".choices button");
    if (!button) return;
    const input = button.closest(".to-check > li").querySelector("input");
    input.value = input.value === button.value ? "" : button.value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  form.addEventListener("keydown", (event) => {
    const at = inputs.indexOf(event.target);
    if (event.key !== "Enter" || at < 0) return;
    event.preventDefault(); // it would save; the next image is what is meant
    (inputs[at + 1] ?? form.elements.save).focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const answers = inputs.filter((input) => input.value !== "").map((input) => [input.dataset.key, input.value]);
    const lines = [["key", "label"], ...references, ...answers].map((row) => row.map(quoted).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = "references.csv";
    link.click();
    URL.revokeObjectURL(link.href);
    unsaved = false;
  });
  addEventListener("beforeunload", (event) => {
    if (unsaved) event.preventDefault();
  });
  update();
})();
