"""The coordinator's live page: what ``iedn-server status`` says, as it changes, in a browser."""
