"""Drawn figures of the chapters, one idea each: `kit` draws, `drawing` shows, the rest say what."""
