// Sort a table by the column whose head is clicked; numbers by value, everything else as text. Again: the other way.
document.querySelectorAll("thead th").forEach((head) => head.addEventListener("click", () => {
  const place = Array.prototype.indexOf.call(head.parentNode.children, head);
  const body = head.closest("table").tBodies[0];
  const down = head.dataset.order !== "down";
  head.dataset.order = down ? "down" : "up";
  const key = (row) => row.cells[place].textContent;
  const order = (a, b) => {
    const difference = parseFloat(key(a).replace(/,/g, "")) - parseFloat(key(b).replace(/,/g, ""));
    return Number.isNaN(difference) ? key(b).localeCompare(key(a)) : difference;
  };
  Array.from(body.rows).sort((a, b) => (down ? order(b, a) : order(a, b))).forEach((row) => body.appendChild(row));
}));
