import type { Reason } from "#/api/text-models";
import type { Catalogue, Format } from "#/language";

type Write = Format & { exact: (usd: number) => string; percent: (share: number) => string };
type Texts = Record<string, string>;

const en = {
  chosen: "Would answer",
  nobody: "Nobody would answer",
  why: "Why",
  needs: "The request needs",
  promptTokens: (count: string) => `about ${count} prompt tokens`,
  maxTokens: (count: string) => `at most ${count} output tokens`,
  kind: (kind: string, language: string) => `looks like: ${kind}, language ${language}`,
  badAnswer: (usd: string) => `a useless answer costs ${usd}`,
  second: (usd: string) => `a second of waiting costs ${usd}`,
  omitted: "left out",
  candidates: "Candidates, best first",
  backend: "Back end",
  model: "Model",
  score: "Score",
  scoreHelp: "Expected cost + waiting + risk of a useless answer, in US dollars. The lowest wins.",
  losesBy: "Behind",
  cost: "Cost",
  time: "Time",
  timeParts: (waiting: string, loading: string, first: string, writing: string) =>
    `waiting ${waiting}, loading ${loading}, first token ${first}, writing ${writing}`,
  good: "Good answer",
  goodRange: (low: string, high: string) => `${low} to ${high}`,
  basis: (basis: string, signals: string) => `from: ${basis}, ${signals} signals`,
  reason: "Reason",
  excluded: "Excluded",
  retryAfter: (seconds: string) => `may be back in ${seconds}`,
  /** Reasons by their codes, where the server's words are in another language. */
  reasons: {} as Record<string, (reason: Reason, write: Write) => string>,
  and: " and ",
  abilities: { tools: "tools", vision: "pictures", schema: "JSON schema", thinking: "reasoning" } as Texts,
  states: {} as Texts,
  kinds: {} as Texts,
  bases: {
    table: "public scores", configuration: "the configuration", unknown: "nothing known", learned: "this tenant's ratings",
    shared: "other tenants' ratings",
  } as Texts,
};

const abilities: Texts = { tools: "ツール", vision: "画像", schema: "JSON スキーマ", thinking: "推論", embeddings: "埋め込み", chat: "チャット" };

/** The strings of an explained choice of a back end. */
export const strings: Catalogue<typeof en> = {
  en,
  ja: {
    chosen: "応答するバックエンド",
    nobody: "応答できるバックエンドがありません",
    why: "理由",
    needs: "リクエストの要件",
    promptTokens: (count) => `プロンプト約 ${count} トークン`,
    maxTokens: (count) => `出力は最大 ${count} トークン`,
    kind: (kind, language) => `推定される種類: ${kind}、言語: ${language}`,
    badAnswer: (usd) => `役に立たない回答の損失: ${usd}`,
    second: (usd) => `待ち時間 1 秒の損失: ${usd}`,
    omitted: "除外した機能",
    candidates: "候補(良い順)",
    backend: "バックエンド",
    model: "モデル",
    score: "スコア",
    scoreHelp: "予想費用+待ち時間+役に立たない回答のリスク(米ドル)。最も低いものが選ばれます。",
    losesBy: "差",
    cost: "費用",
    time: "時間",
    timeParts: (waiting, loading, first, writing) =>
      `待ち ${waiting}、読み込み ${loading}、最初のトークン ${first}、生成 ${writing}`,
    good: "良い回答の確率",
    goodRange: (low, high) => `${low}〜${high}`,
    basis: (basis, signals) => `根拠: ${basis}、評価 ${signals} 件`,
    reason: "理由",
    excluded: "対象外",
    retryAfter: (seconds) => `${seconds} 後に復帰の見込み`,
    reasons: {
      only: () => "唯一の候補",
      free: () => "無料",
      cheapest: () => "最も安い",
      soonest: () => "最も早く終わる",
      better: () => "回答の質が最も良い見込み",
      trying: () => "評価を集めるための試行",
      model_missing: () => "バックエンドにこのモデルがない",
      costs_more: ({ usd }, { exact }) => `${exact(Number(usd))} 高い`,
      takes_longer: ({ seconds }, format) => `${format.seconds(Number(seconds))} 長くかかる`,
      answers_worse: ({ p_good, best_p_good }, { percent }) =>
        `回答の質が劣る（良い回答の確率 ${percent(Number(p_good))}、最良は ${percent(Number(best_p_good))}）`,
      needs_translation: () => "リクエストの形式の変換が必要",
      more_load: () => "負荷がより高い",
      later_in_configuration: () => "設定での順番が後",
      residency_not_allowed: ({ residency }) => `許可されていません（データの送り先: ${String(residency)}）`,
      not_configured: () => "未設定",
      unmet_needs: ({ missing, context }, { number }) => (missing as string[]).map((name) => (
        name === "context" ? `コンテキストは ${number(Number(context))} トークンまで` : `${abilities[name] ?? name}に非対応`
      )).join("、"),
      health_check_fails: () => "ヘルスチェックに失敗しています",
      breaker_open: () => "失敗が続いたため遮断中",
      quality_below_floor: ({ p_good, floor }, { percent }) =>
        `良い回答の確率 ${percent(Number(p_good))} が下限 ${percent(Number(floor))} を下回る`,
    },
    and: "、",
    abilities,
    states: { resident: "読み込み済み", loading: "読み込み中", absent: "未読み込み", busy: "使用中" },
    kinds: {
      greeting: "あいさつ", extraction: "抽出", writing: "文章作成", summary: "要約", knowledge: "知識", chat: "会話", translation: "翻訳",
      medicine: "医療", law: "法律", finance: "金融", reasoning: "推論", code: "コード", mathematics: "数学",
    },
    bases: { table: "公開スコア", configuration: "設定", unknown: "情報なし", learned: "自テナントの評価", shared: "他テナントの評価" },
  },
};
