import { Center, Loader } from "@mantine/core";
import { type ComponentType, useEffect, useState } from "react";

import { findComponent, loadComponent, type Page } from "#/pages";

type State = { component: ComponentType } | { error: Error } | null;

/**
 * Shows a page as soon as it is loaded. React's Suspense would keep the loader for 300 ms at least, once it has
 * shown it, and the page would ask for its data only then.
 */
export function LoadedPage({ page }: { page: Page }) {
  const [state, setState] = useState<State>(null);
  const Found = findComponent(page) ?? (state && "component" in state ? state.component : undefined);
  const isMissing = Found === undefined;
  useEffect(() => {
    if (!isMissing) return undefined;
    let isShown = true;
    loadComponent(page).then(
      (component) => isShown && setState({ component }),
      (error: Error) => isShown && setState({ error }),
    );
    return () => {
      isShown = false;
    };
  }, [page, isMissing]);
  if (Found) return <Found />;
  if (state && "error" in state) throw state.error;
  return <Center h={200}><Loader /></Center>;
}
