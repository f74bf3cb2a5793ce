// Fetches the live document with the token that was typed in, and has RapiDoc show it; without one at
// once where the server says that everybody may. The token stays in this page's memory: it is neither
// stored nor put into an address.
'use strict';

const form = document.getElementById('sign-in');
const message = document.getElementById('message');
const reference = document.getElementById('reference');

function authorization() {
  const username = document.getElementById('username').value;
  const token = document.getElementById('token').value;
  if (username) {
    const bytes = new TextEncoder().encode(`${username}:${token}`);
    return 'Basic ' + btoa(String.fromCharCode(...bytes));
  }
  return token ? `Bearer ${token}` : '';
}

async function show() {
  const credentials = authorization();
  const headers = credentials ? { Authorization: credentials } : {};
  const answer = await fetch('/openapi-live.json', { headers, cache: 'no-store', credentials: 'omit' });
  const body = await answer.json();
  if (!answer.ok) {
    message.textContent = `${body.error}: ${body.detail || ''}`;
    return;
  }
  if (!customElements.get('rapi-doc')) {
    message.textContent = "RapiDoc is not installed on the server: pip install 'ctrl-exec[docs]'";
    return;
  }
  form.hidden = true;
  reference.hidden = false;
  reference.addEventListener('before-try', (event) => {
    if (credentials && !event.detail.request.headers.has('Authorization')) {
      event.detail.request.headers.append('Authorization', credentials);
    }
  });
  reference.addEventListener('spec-loaded', () => {
    document.title = `${body.info.title} ${body.info.version}`;
  });
  body.servers = [{ url: window.location.origin }];
  await reference.loadSpec(body);
}

function attempt() {
  message.textContent = '';
  show().catch((error) => { message.textContent = String(error); });
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  attempt();
});

if (document.body.dataset.open) {
  attempt();
}
