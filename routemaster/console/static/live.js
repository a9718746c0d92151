/* Keeps a page up to date: the console's stream says that there is news, and htmx fetches the part that changes.

   Elements with `data-keep` (charts, forms that somebody may be filling in) are left alone by that.
   A hidden page closes its stream: it costs nothing, and catches up when it is shown again. */

"use strict";

(() => {
  const RETRY = 3000;      // ms until the next try after the console refused the stream
  const STALE = 20000;     // ms without a word after which the page is called out of date
  const status = document.getElementById("live-status");
  const live = document.getElementById("live");
  let stream = null, retry = null, heard = 0;

  document.documentElement.classList.add("htmx"); // the style sheet hides what is only for browsers without scripts
  Idiomorph.defaults.ignoreActiveValue = true;
  Idiomorph.defaults.callbacks.beforeNodeMorphed = (old) => !(old.dataset && "keep" in old.dataset);

  // -- times in the reader's zone

  const two = (number) => String(number).padStart(2, "0");
  const localize = (root) => {
    const today = new Date().toDateString();
    for (const each of root.querySelectorAll("time[data-local]")) {
      const at = new Date(each.dateTime);
      const date = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
      const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
      each.textContent = at.toDateString() === today ? time : `${date} ${time}`;
      each.title = `${date} ${time}`;
    }
  };
  document.getElementById("zone").textContent =
    `Times are in ${Intl.DateTimeFormat().resolvedOptions().timeZone}; those without a date are of today.`;

  // -- the word on top that says whether the page is up to date: announced only when it changes

  const say = (kind, words) => {
    if (!status || status.className === kind) return;
    status.className = kind;
    status.firstElementChild.textContent = words;
  };

  const check = () => {
    if (stream && Date.now() - heard > STALE) say("lost", "Not live: no news from the console");
  };

  // -- the stream

  const refresh = () => {
    if (document.hidden) return;
    if (live) htmx.trigger(live, "refresh");
    document.dispatchEvent(new CustomEvent("console:news"));
  };

  const open = () => {
    clearTimeout(retry);
    if (stream || document.hidden) return;
    stream = new EventSource("/live");
    stream.onopen = () => { heard = Date.now(); };
    stream.addEventListener("snapshot", (event) => {
      heard = Date.now();
      say("live", "Live");
      if (event.data !== stream.seen) refresh();
      stream.seen = event.data;
    });
    for (const other of ["change", "alive"]) stream.addEventListener(other, () => { heard = Date.now(); });
    stream.onerror = () => {
      say("lost", "Connection to the console lost");
      if (stream.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      close();
      if (live) htmx.trigger(live, "refresh"); // which finds out whether the session is over
      retry = setTimeout(open, RETRY);
    };
  };

  const close = () => {
    if (stream) stream.close();
    stream = null;
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  setInterval(check, 5000);

  document.addEventListener("htmx:beforeOnLoad", (event) => {
    if (event.detail.xhr.status !== 401) return;
    event.preventDefault(); // the session is over: the login leads back to this page
    location.reload();
  });
  document.addEventListener("htmx:responseError", (event) => {
    if (event.target === live) say("lost", `Not live: the console answered ${event.detail.xhr.status}`);
  });
  document.addEventListener("htmx:afterSwap", (event) => localize(event.target));
  localize(document);
  open();
})();
