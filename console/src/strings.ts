import type { Catalogue } from "#/language";

const en = {
  skip: "Skip to the content",
  menu: "Open or close the menu",
  pages: "Pages",
  comfyui: "ComfyUI",
  notFoundTitle: "Not found",
  notFound: "There is no such page, or you may not see it.",
  toStart: "Go to the first page",
  signOut: "Sign out",
  theme: "Light, dark, or as the system",
  language: "Language",
  somethingFailed: "This did not work",
  requestId: "Request",
  code: "Code",
  cancel: "Cancel",
  tryAgain: "Try again",
  more: "Load more",
  reconnecting: "The connection was lost; connecting again…",
  refused: (reason: string) => `This page is not updated; trying again now and then. ${reason}`,
  documentation: "API documentation",
};
export type Strings = typeof en;

/** The strings of the frame and of shared components. */
export const strings: Catalogue<Strings> = {
  en,
  ja: {
    skip: "本文へ移動",
    menu: "メニューを開閉",
    pages: "ページ",
    comfyui: "ComfyUI",
    notFoundTitle: "見つかりません",
    notFound: "ページが存在しないか、表示する権限がありません。",
    toStart: "最初のページへ",
    signOut: "サインアウト",
    theme: "ライト・ダーク・システムに合わせる",
    language: "言語",
    somethingFailed: "処理に失敗しました",
    requestId: "リクエスト ID",
    code: "コード",
    cancel: "キャンセル",
    tryAgain: "再試行",
    more: "さらに読み込む",
    reconnecting: "接続が切れました。再接続しています…",
    refused: (reason) => `このページは更新されていません。ときどき再試行します。${reason}`,
    documentation: "API ドキュメント",
  },
};
