import { createTheme } from "@mantine/core";

/** The look of all pages; colours have enough contrast for text in light and dark. */
export const theme = createTheme({
  // People who asked their system for less motion get none.
  respectReducedMotion: true,
  primaryColor: "indigo",
  primaryShade: { light: 7, dark: 8 },
  autoContrast: true,
  defaultRadius: "md",
  fontFamily: 'system-ui, -apple-system, "Segoe UI", "Hiragino Sans", "Noto Sans CJK JP", sans-serif',
  cursorType: "pointer",
  components: {
    // Notices go by themselves; their button would have no name for screen readers.
    Notification: { defaultProps: { withCloseButton: false } },
    // A list of menu items may contain nothing else; the first item gets the focus instead.
    Menu: { defaultProps: { withInitialFocusPlaceholder: false } },
    // Else the options of all selects are drawn when a page opens: each of hundreds of members.
    Combobox: { defaultProps: { keepMounted: false } },
  },
});
