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
}

export const PAGES: readonly Page[] = [
  {
    path: "/overview", title: { en: "Overview", ja: "概要" }, icon: IconLayoutDashboard, scopes: ["jobs:read"],
    component: lazy(() => import("#/pages/overview")),
  },
  {
    path: "/jobs", nested: true, title: { en: "Jobs", ja: "ジョブ" }, icon: IconListDetails, scopes: ["jobs:read"],
    component: lazy(() => import("#/pages/jobs")),
  },
  {
    path: "/render", title: { en: "Render", ja: "レンダー" }, icon: IconBrush, scopes: ["jobs:write"],
    reads: "jobs:read",
    component: lazy(() => import("#/pages/render")),
  },
  {
    path: "/gallery", title: { en: "Gallery", ja: "ギャラリー" }, icon: IconPhoto, scopes: ["jobs:read"],
    component: lazy(() => import("#/pages/gallery")),
  },
  {
    path: "/chat", title: { en: "Chat", ja: "チャット" }, icon: IconMessages, scopes: ["text"],
    component: lazy(() => import("#/pages/chat")),
  },
  {
    path: "/models", title: { en: "Models", ja: "モデル" }, icon: IconBrain, scopes: ["text", "jobs:read"],
    component: lazy(() => import("#/pages/models")),
  },
  {
    path: "/people", nested: true, title: { en: "People", ja: "メンバー管理" }, icon: IconUsers,
    scopes: ["org:read", "org:admin", "operator"],
    component: lazy(() => import("#/pages/people")),
  },
  {
    path: "/usage", title: { en: "Usage", ja: "使用量" }, icon: IconReportMoney, scopes: ["text"],
    component: lazy(() => import("#/pages/usage")),
  },
  {
    path: "/operate", title: { en: "Operate", ja: "運用" }, icon: IconServerCog, scopes: ["operator"],
    component: lazy(() => import("#/pages/operate")),
  },
  {
    path: "/account", title: { en: "My account", ja: "アカウント" }, icon: IconUserCircle,
    scopes: ["jobs:read", "jobs:write", "text", "player", "operator", "org:read", "org:admin", "keys"],
    component: lazy(() => import("#/pages/account")),
  },
];
