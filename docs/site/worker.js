// Search runs in a worker, which browsers refuse to pages that are opened from the disk. There a
// hidden frame takes its place: the same messages, the same script, no network.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      const source = new URL(url, document.baseURI).href;
      const queue = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      this.inside = this.frame.contentWindow;
      this.listen = (event) => {
        if (event.source === this.inside && this.onmessage) this.onmessage(event);
      };
      window.addEventListener("message", this.listen);
      // As with a worker, each side has its own copy of a message, and gets it after this event.
      this.inside.postMessage = (message) => {
        const data = structuredClone(message);
        setTimeout(() => window.dispatchEvent(
          new MessageEvent("message", { data, source: this.inside }),
        ));
      };
      this.send = (data) => queue.push(data);
      const script = this.inside.document.createElement("script");
      script.src = source;
      script.onload = () => {
        this.send = (data) => setTimeout(() => this.inside.dispatchEvent(
          new this.inside.MessageEvent("message", { data }),
        ));
        queue.forEach((data) => this.send(data));
      };
      script.onerror = (event) => this.onerror && this.onerror(event);
      this.inside.document.body.appendChild(script);
    }

    postMessage(data) {
      this.send(structuredClone(data));
    }

    terminate() {
      window.removeEventListener("message", this.listen);
      this.frame.remove();
    }
  };
}
