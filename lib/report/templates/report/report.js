// The page reads without this. Here: where one is, long tables that can be sorted and searched.
const links = new Map([...document.querySelectorAll('nav a')].map(a => [document.querySelector(a.getAttribute('href')), a]));
const mark = () => {
  const above = [...links.keys()].filter(place => place && place.getBoundingClientRect().top < innerHeight / 3);
  for (const [place, a] of links) a.toggleAttribute('aria-current', place === above.at(-1));
};
addEventListener('scroll', mark, {passive: true});
mark();

const value = cell => {
  const number = cell.querySelector('data');
  return number ? Number(number.value) : cell.textContent.trim();
};
const order = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b));
for (const box of document.querySelectorAll('.table')) {
  const rows = [...box.querySelectorAll('tbody tr:not(.theme)')];
  if (rows.length < 12) continue;
  const filter = Object.assign(document.createElement('input'), {type: 'search', placeholder: '⌕'});
  filter.setAttribute('aria-label', '⌕');
  filter.addEventListener('input', () => {
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(filter.value.toLowerCase());
  });
  box.prepend(filter);
  for (const [column, head] of [...box.querySelectorAll('thead th')].entries()) {
    let way = -1;
    head.classList.add('sortable');
    head.tabIndex = 0;
    const sort = () => {
      way = -way;
      for (const body of box.querySelectorAll('tbody'))
        [...body.querySelectorAll('tr:not(.theme)')]
          .sort((a, b) => way * order(value(a.cells[column]), value(b.cells[column])))
          .forEach(row => body.append(row));
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', event => event.key === 'Enter' && sort());
  }
}
