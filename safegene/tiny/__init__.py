"""The tiny family: an honest model family trained from scratch on a CPU, for the demo, the tests and the science."""
