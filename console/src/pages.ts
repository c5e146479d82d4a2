/** Lists the pages: their paths, names and scopes, and how each is loaded when it is first opened. */

import {
  type Icon, IconBrain, IconBrush, IconLayoutDashboard, IconListDetails, IconMessages, IconPhoto, IconReportMoney,
  IconServerCog, IconUserCircle, IconUsers,
} from "@tabler/icons-react";
import type { QueryClient } from "@tanstack/react-query";
import type { ComponentType } from "react";

import type { Catalogue } from "#/language";

interface PageModule {
  default: ComponentType;
  /** Begins to ask for what the page shows first. */
  prefetch?: (queries: QueryClient) => void;
}

export interface Page {
  path: string;
  /** The page has paths of its own below `path`. */
  nested?: boolean;
  title: Catalogue<string>;
  icon: Icon;
  /** Shown to callers who have any of these scopes. */
  scopes: readonly string[];
  /** Needed besides. */
  reads?: string;
  load: () => Promise<PageModule>;
}

export const PAGES: readonly Page[] = [
  {
    path: "/overview", title: { en: "Overview", ja: "概要" }, icon: IconLayoutDashboard, scopes: ["jobs:read"],
    load: () => import("#/pages/overview"),
  },
  {
    path: "/jobs", nested: true, title: { en: "Jobs", ja: "ジョブ" }, icon: IconListDetails, scopes: ["jobs:read"],
    load: () => import("#/pages/jobs"),
  },
  {
    path: "/render", title: { en: "Render", ja: "レンダー" }, icon: IconBrush, scopes: ["jobs:write"],
    reads: "jobs:read",
    load: () => import("#/pages/render"),
  },
  {
    path: "/gallery", title: { en: "Gallery", ja: "ギャラリー" }, icon: IconPhoto, scopes: ["jobs:read"],
    load: () => import("#/pages/gallery"),
  },
  {
    path: "/chat", title: { en: "Chat", ja: "チャット" }, icon: IconMessages, scopes: ["text"],
    load: () => import("#/pages/chat"),
  },
  {
    path: "/models", title: { en: "Models", ja: "モデル" }, icon: IconBrain, scopes: ["text", "jobs:read"],
    load: () => import("#/pages/models"),
  },
  {
    path: "/people", nested: true, title: { en: "People", ja: "メンバー管理" }, icon: IconUsers,
    scopes: ["org:read", "org:admin", "operator"],
    load: () => import("#/pages/people"),
  },
  {
    path: "/usage", title: { en: "Usage", ja: "使用量" }, icon: IconReportMoney, scopes: ["text"],
    load: () => import("#/pages/usage"),
  },
  {
    path: "/operate", title: { en: "Operate", ja: "運用" }, icon: IconServerCog, scopes: ["operator"],
    load: () => import("#/pages/operate"),
  },
  {
    path: "/account", title: { en: "My account", ja: "アカウント" }, icon: IconUserCircle,
    scopes: ["jobs:read", "jobs:write", "text", "player", "operator", "org:read", "org:admin", "keys"],
    load: () => import("#/pages/account"),
  },
];

const modules = new Map<Page, PageModule>();
// Pages that may be opened next are loaded once the first one has its data.
const REST_MILLISECONDS = 1_000;

/** Return a page's component if it is loaded. */
export function findComponent(page: Page): ComponentType | undefined {
  return modules.get(page)?.default;
}

export async function loadComponent(page: Page): Promise<ComponentType> {
  const module = await page.load();
  modules.set(page, module);
  return module.default;
}

/** Begin to load a page that is likely to be shown. */
export function preloadPage(page: Page): void {
  // A failure is shown where the page is rendered, which loads it again.
  if (!modules.has(page)) loadComponent(page).catch(() => undefined);
}

/** Ask for the data of a page that is about to be shown, while the browser has not drawn it yet. */
export function prefetchPage(page: Page, queries: QueryClient): void {
  modules.get(page)?.prefetch?.(queries);
}

/** Begin to load the page of an address, while it is not known yet who is signed in. */
export function preloadAddress(path: string): void {
  preloadPage(PAGES.find((one) => path.startsWith(one.path)) ?? PAGES[0]!);
}

/** Load pages one by one while the browser has nothing else to do; return a function that stops this. */
export function preloadInRest(pages: readonly Page[]): () => void {
  let timer: ReturnType<typeof setTimeout>;
  let isStopped = false;
  const next = async ([page, ...rest]: readonly Page[]) => {
    if (page === undefined || isStopped) return;
    await loadComponent(page).catch(() => undefined);
    wait(rest);
  };
  const wait = (rest: readonly Page[]) => {
    // Safari has no idle callbacks.
    if ("requestIdleCallback" in window) requestIdleCallback(() => void next(rest));
    else timer = setTimeout(() => void next(rest), REST_MILLISECONDS);
  };
  timer = setTimeout(() => wait(pages), REST_MILLISECONDS);
  return () => {
    isStopped = true;
    clearTimeout(timer);
  };
}
