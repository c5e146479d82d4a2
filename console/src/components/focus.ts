/** Keeps the keyboard's focus where a person works, when the focused element disappears. */

import { useEffect, useRef } from "react";

const CONTENT = "content";
const REMEMBERED = 50;
// Dialogs and menus return the focus by themselves within 10 ms, where they can.
const WAIT_MILLISECONDS = 40;
const FOCUSABLE = "a[href], button:not([disabled]), input:not([disabled]), [tabindex]";

/**
 * Move the focus to what had it last, when the focused element is removed: a dialog that was opened
 * from a menu, a row that was deleted, a button that is no longer offered. Without this the next Tab
 * would begin at the top of the page, and a screen reader would fall silent.
 */
export function useFocusKeeper(): void {
  useEffect(() => {
    let earlier: WeakRef<HTMLElement>[] = [];
    let timer: ReturnType<typeof setTimeout> | undefined;
    const note = ({ target }: FocusEvent) => {
      if (target instanceof HTMLElement) earlier = [...earlier.slice(1 - REMEMBERED), new WeakRef(target)];
    };
    const restore = () => {
      timer = undefined;
      if (!isLost(earlier)) return;
      const dialog = [...document.querySelectorAll<HTMLElement>("[aria-modal=true]")].at(-1);
      const elements = earlier.map((reference) => reference.deref()).reverse();
      const last = elements.find((element) => element && canFocus(element) && (dialog?.contains(element) ?? true));
      (last ?? dialog?.querySelector<HTMLElement>(FOCUSABLE) ?? document.getElementById(CONTENT))?.focus({ preventScroll: true });
    };
    const observer = new MutationObserver(() => {
      if (timer === undefined && isLost(earlier)) timer = setTimeout(restore, WAIT_MILLISECONDS);
    });
    // A touch that removes its button must not move the focus to a field, which would open the keyboard.
    const forget = () => {
      earlier = [];
    };
    document.addEventListener("focusin", note);
    document.addEventListener("pointerdown", forget, true);
    observer.observe(document.body, { childList: true, subtree: true });
    return () => {
      clearTimeout(timer);
      observer.disconnect();
      document.removeEventListener("focusin", note);
      document.removeEventListener("pointerdown", forget, true);
    };
  }, []);
}

/** Return whether the element that had the focus is gone. A person can also have clicked beside all elements. */
function isLost(earlier: readonly WeakRef<HTMLElement>[]): boolean {
  const last = earlier.at(-1);
  return last !== undefined && document.activeElement === document.body && last.deref()?.isConnected !== true;
}

function canFocus(element: HTMLElement): boolean {
  return element.isConnected && element.checkVisibility() && !element.matches(":disabled");
}

/** Move the focus to the content when a person has followed a link to another page. */
export function useFocusOnNavigation(location: string): void {
  const shown = useRef(location);
  useEffect(() => {
    if (shown.current === location) return;
    shown.current = location;
    const focused = document.activeElement;
    const content = document.getElementById(CONTENT);
    // A tab that chooses a part of a page stays focused.
    if (focused === null || !content?.contains(focused)) content?.focus({ preventScroll: true });
  }, [location]);
}
