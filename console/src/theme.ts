import { createTheme } from "@mantine/core";

/** The look of all pages; colours have enough contrast for text in light and dark. */
export const theme = createTheme({
  primaryColor: "indigo",
  primaryShade: { light: 7, dark: 8 },
  autoContrast: true,
  defaultRadius: "md",
  fontFamily: 'system-ui, -apple-system, "Segoe UI", "Hiragino Sans", "Noto Sans CJK JP", sans-serif',
  cursorType: "pointer",
  // Notices go by themselves; their button would have no name for screen readers.
  components: { Notification: { defaultProps: { withCloseButton: false } } },
});
