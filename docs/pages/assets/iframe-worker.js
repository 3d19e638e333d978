/* The search of files that are opened as they lie: browsers start no worker there, so its script runs in a frame. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((done) => frame.addEventListener("load", done));
      document.body.append(frame);
      this.inside = frame.contentWindow;
      frame.srcdoc = `<script>postMessage = (data) => frameElement.dispatchEvent(new MessageEvent("said", { data }))</script>
        <script src="${new URL(url, location)}"></script>`;
      frame.addEventListener("said", ({ data }) => this.dispatchEvent(new MessageEvent("message", { data })));
    }
    async postMessage(data) {
      await this.ready;
      this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
    terminate() {}
  };
}
