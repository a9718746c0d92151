"""The console in a real browser: Chromium, driven by Playwright, against real buses and a real console."""
