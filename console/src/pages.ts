/** Lists the pages: their paths, names and scopes, and how each is loaded when it is first opened. */

import {
  type Icon, IconBrain, IconBrush, IconLayoutDashboard, IconListDetails, IconMessages, IconPhoto, IconReportMoney,
  IconServerCog, IconUserCircle, IconUsers,
} from "@tabler/icons-react";
import { type ComponentType, lazy, type LazyExoticComponent } from "react";

import type { Catalogue } from "#/language";

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
  component: LazyExoticComponent<ComponentType>;
  load: Load;
}

type Load = () => Promise<{ default: ComponentType }>;

function loaded(load: Load): Pick<Page, "component" | "load"> {
  return { component: lazy(load), load };
}

export const PAGES: readonly Page[] = [
  {
    path: "/overview", title: { en: "Overview", ja: "概要" }, icon: IconLayoutDashboard, scopes: ["jobs:read"],
    ...loaded(() => import("#/pages/overview")),
  },
  {
    path: "/jobs", nested: true, title: { en: "Jobs", ja: "ジョブ" }, icon: IconListDetails, scopes: ["jobs:read"],
    ...loaded(() => import("#/pages/jobs")),
  },
  {
    path: "/render", title: { en: "Render", ja: "レンダー" }, icon: IconBrush, scopes: ["jobs:write"],
    reads: "jobs:read",
    ...loaded(() => import("#/pages/render")),
  },
  {
    path: "/gallery", title: { en: "Gallery", ja: "ギャラリー" }, icon: IconPhoto, scopes: ["jobs:read"],
    ...loaded(() => import("#/pages/gallery")),
  },
  {
    path: "/chat", title: { en: "Chat", ja: "チャット" }, icon: IconMessages, scopes: ["text"],
    ...loaded(() => import("#/pages/chat")),
  },
  {
    path: "/models", title: { en: "Models", ja: "モデル" }, icon: IconBrain, scopes: ["text", "jobs:read"],
    ...loaded(() => import("#/pages/models")),
  },
  {
    path: "/people", nested: true, title: { en: "People", ja: "メンバー管理" }, icon: IconUsers,
    scopes: ["org:read", "org:admin", "operator"],
    ...loaded(() => import("#/pages/people")),
  },
  {
    path: "/usage", title: { en: "Usage", ja: "使用量" }, icon: IconReportMoney, scopes: ["text"],
    ...loaded(() => import("#/pages/usage")),
  },
  {
    path: "/operate", title: { en: "Operate", ja: "運用" }, icon: IconServerCog, scopes: ["operator"],
    ...loaded(() => import("#/pages/operate")),
  },
  {
    path: "/account", title: { en: "My account", ja: "アカウント" }, icon: IconUserCircle,
    scopes: ["jobs:read", "jobs:write", "text", "player", "operator", "org:read", "org:admin", "keys"],
    ...loaded(() => import("#/pages/account")),
  },
];

/** Begin to load the page of an address, while it is not known yet who is signed in. */
export function preloadPage(path: string): void {
  const page = PAGES.find((one) => path.startsWith(one.path)) ?? PAGES[0];
  // A failure is shown where the page is rendered, which loads it again.
  page?.load().catch(() => undefined);
}
