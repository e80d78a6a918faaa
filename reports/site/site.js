// Sort a table by the column whose head is clicked, and hide the rows that the filters leave out. Without this script
// the tables are whole, and in the order of their first writing.
const value = (text) => parseFloat(text.replace(/,/g, ""));

document.querySelectorAll("table.sortable").forEach((table) => {
  table.classList.add("ready");
  table.querySelectorAll("thead th").forEach((head, place) => head.addEventListener("click", () => {
    const down = head.dataset.order !== "down";
    head.dataset.order = down ? "down" : "up";
    const rows = Array.from(table.tBodies[0].rows).map((row) => [row.cells[place].textContent, row]);
    rows.sort(([a], [b]) => {
      const difference = value(a) - value(b);
      return (down ? -1 : 1) * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
    });
    rows.forEach(([, row]) => table.tBodies[0].appendChild(row));
  }));
});

document.querySelectorAll("form.filters").forEach((form) => {
  form.classList.add("ready");
  const wanted = (row) =>
    row.textContent.toLowerCase().includes(form.text.value.toLowerCase()) &&
    (!form.family.value || row.dataset.family === form.family.value) &&
    ["parameters", "megaflops"].every((name) => !form[name].value || value(row.dataset[name]) <= value(form[name].value));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () =>
    document.querySelectorAll("table.filtered tbody tr").forEach((row) => { row.hidden = !wanted(row); }));
});
