function r(t,n){const e=Object.keys(n[0]??{}),c=[e,...n.map(o=>e.map(s=>o[s]))];i(`${t}.csv`,"text/csv",`${c.map(o=>o.map(l).join(",")).join(`\r
`)}\r
`)}function a(t,n){i(`${t}.json`,"application/json",JSON.stringify(n,null,2))}function i(t,n,e){const c=URL.createObjectURL(new Blob([e],{type:n})),o=document.createElement("a");o.href=c,o.download=t,o.click(),setTimeout(()=>URL.revokeObjectURL(c),1e4)}function l(t){let n=t==null?"":typeof t=="object"?JSON.stringify(t):`${t}`;return/^[=+@\t\r]|^-(?!\d)/.test(n)&&(n=`'${n}`),/[",\r\n]/.test(n)?`"${n.replaceAll('"','""')}"`:n}export{a,r as d};
