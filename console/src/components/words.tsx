import { Code } from "@mantine/core";
import { Fragment } from "react";

/** Text in which names between backticks are set as code. */
export function Words({ children }: { children: string }) {
  return children.split("`").map((part, index) => (
    index % 2 === 1 ? <Code key={index}>{part}</Code> : <Fragment key={index}>{part}</Fragment>
  ));
}
