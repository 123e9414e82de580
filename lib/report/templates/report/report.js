// The page reads without this: where one is.
const links = new Map([...document.querySelectorAll('nav a')].map(a => [document.querySelector(a.getAttribute('href')), a]));
const mark = () => {
  const above = [...links.keys()].filter(place => place && place.getBoundingClientRect().top < innerHeight / 3);
  for (const [place, a] of links) a.toggleAttribute('aria-current', place === above.at(-1));
};
addEventListener('scroll', mark, {passive: true});
mark();
