/**
 * Makes plain elements that look like Mantine's components. A list of fifty rows has hundreds of them, and a
 * browser needs several times as long for the components, most of a click on a list.
 */

import { ActionIcon, Badge, Checkbox, Table, UnstyledButton } from "@mantine/core";
import type { ComponentProps, CSSProperties, ReactNode } from "react";

/** The classes of the cells of a `Table`. */
export const CELL = Table.classes.td;
/** What a row of a `Table` has: its class, and the line below it. */
export const ROW = { className: Table.classes.tr, "data-with-row-border": true };

const FOCUS = "mantine-focus-auto";
const { inner, input, icon } = Checkbox.classes;

/** A checkbox without a visible label. */
export function Check({ isSmall, ...rest }: { isSmall?: boolean; "aria-label": string } & ComponentProps<"input">) {
  return (
    <div className={`${inner} check`} data-small={isSmall}>
      <input type="checkbox" className={`${FOCUS} ${input}`} {...rest} />
      <svg viewBox="0 0 10 7" aria-hidden="true" className={icon}>
        <path d="M4 4.586L1.707 2.293A1 1 0 1 0 .293 3.707l3 3a.997.997 0 0 0 1.414 0l5-5A1 1 0 1 0 8.293.293L4 4.586z" fill="currentColor" />
      </svg>
    </div>
  );
}

const BUTTON = `${FOCUS} ${UnstyledButton.classes.root}`;

/** A button without a look of its own. */
export function PlainButton({ className = "", ...rest }: ComponentProps<"button">) {
  return <button type="button" className={`${BUTTON} ${className}`} {...rest} />;
}

/** A subtle grey button that has only an icon. */
export function IconButton({ children, ...rest }: { "aria-label": string } & ComponentProps<"button">) {
  return (
    <PlainButton className={`mantine-active ${ActionIcon.classes.root} icon-button`} {...rest}>
      <span className={ActionIcon.classes.icon}>{children}</span>
    </PlainButton>
  );
}

/** A badge with a dot in a colour of the theme. */
export function DotBadge({ color, children }: { color: string; children: ReactNode }) {
  const style = {
    "--badge-dot-color": `var(--mantine-color-${color}-filled)`, textTransform: "none", flexShrink: 0,
  } as CSSProperties;
  return (
    <div className={`${Badge.classes["root--dot"]} ${Badge.classes.root}`} data-variant="dot" style={style}>
      <span className={Badge.classes.label}>{children}</span>
    </div>
  );
}

/** A small badge that only names something. */
export function Tag({ children }: { children: ReactNode }) {
  return (
    <div className={`${Badge.classes.root} tag`}>
      <span className={Badge.classes.label}>{children}</span>
    </div>
  );
}
