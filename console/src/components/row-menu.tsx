/** Shows the one menu of a list beside the button of a row: a menu for each row would take most of the time of drawing it. */

import { Menu } from "@mantine/core";
import { IconDots } from "@tabler/icons-react";
import { type ReactNode, type Ref, useImperativeHandle } from "react";

import { IconButton } from "#/components/plain";

const MENU = "row-menu";

interface ButtonProps {
  label: string;
  isOpen: boolean;
  onClick: (button: HTMLElement) => void;
}

export function RowMenuButton({ label, isOpen, onClick }: ButtonProps) {
  return (
    <IconButton
      aria-label={label} aria-haspopup="menu" aria-expanded={isOpen}
      // As Mantine names the button and the list of a menu.
      id={isOpen ? MENU : undefined} aria-controls={isOpen ? `${MENU}-dropdown` : undefined}
      onClick={(event) => onClick(event.currentTarget)}
    >
      <IconDots size={16} aria-hidden />
    </IconButton>
  );
}

export function RowMenu({ button, onClose, children }: { button: HTMLElement; onClose: () => void; children: ReactNode }) {
  return (
    <Menu opened id={MENU} position="bottom-end" onClose={onClose}>
      <Menu.Target><Anchor button={button} /></Menu.Target>
      <Menu.Dropdown>{children}</Menu.Dropdown>
    </Menu>
  );
}

/** Gives the menu an element that is drawn elsewhere as its target. */
function Anchor({ button, ref }: { button: HTMLElement; ref?: Ref<HTMLElement> }) {
  useImperativeHandle(ref, () => button, [button]);
  return null;
}
